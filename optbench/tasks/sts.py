"""Semantic textual similarity (STS): Spearman's rank correlation between cosines and human scores of sentence pairs."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from optbench.errors import TaskError
from optbench.tasks.base import BaseTask, CalibrationTexts, PairData
from optbench.tasks.files import check_text, column_name, files_of, find_columns, read_cells

__all__ = ["SUFFIXES", "Sts"]

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
EXPECTED = "sentence1, sentence2 and score, as .csv, .tsv or .parquet"
# As `column_name` gives them.
NAMES = {
    "first": frozenset({"sentence1", "text1", "s1", "first", "sentencea"}),
    "second": frozenset({"sentence2", "text2", "s2", "second", "sentenceb"}),
    "score": frozenset({"score", "similarity", "similarityscore", "label", "rating", "gold", "relatednessscore"}),
}


class Sts(BaseTask):
    """An STS task from a table of scored pairs, with or without a header."""

    task: Literal["sts"] = "sts"
    path: Path = Field(description="A .csv, .tsv or .parquet file of sentence1, sentence2, score, or a folder of them, one a language.")

    @property
    def name(self) -> str:
        """`sts:` and the stem of the file name."""
        return f"sts:{self.path.name.partition('.')[0]}"

    def parts(self) -> tuple["Sts", ...]:
        """One task for each file."""
        return tuple(self.model_copy(update={"path": path}) for path in files_of(self.path, SUFFIXES, EXPECTED))

    def check_files(self) -> None:
        """Look for the files; raises TaskError where there is none."""
        self.parts()

    def load(self) -> PairData:
        """Read the pairs. A first line that names sentences and score is the header; then the order of the columns does not matter.

        Pairs with a sentence without text are left out; `notes` has their number.
        """
        rows: list[tuple[str, str, float]] = []
        columns: Sequence[int] = ()
        width, n_blank = 0, 0
        for where, cells in read_cells(self.path):
            if not columns:
                columns, width = _columns(cells, where), len(cells)
                if _is_header(cells):
                    continue
            score = _parse_score(cells[columns[2]]) if len(cells) == width else None
            if score is None:
                raise TaskError(f"{where}: found {cells!r:.120}; expected {EXPECTED}")
            first, second = (check_text(cells[index], where) for index in columns[:2])
            if first.strip() and second.strip():
                rows.append((first, second, score))
            else:
                n_blank += 1
        if len({score for _, _, score in rows}) < 2:
            raise TaskError(f"{self.path}: {len(rows)} pairs with fewer than two different scores cannot be ranked; expected {EXPECTED}")
        language = re.search(r"(?:^|[-_.])([a-z]{2})(?:[-_.]|$)", self.path.stem)
        first_texts, second_texts, scores = zip(*rows, strict=True)
        return PairData(
            name=self.name,
            language=language[1] if language else "und",
            first=first_texts,
            second=second_texts,
            scores=scores,
            notes=(f"pairs without text left out: {n_blank:,}",) if n_blank else (),
        )

    def calibration_texts(self, n: int, seed: int = 0) -> CalibrationTexts:
        """None: every sentence of the file is in the test."""
        return CalibrationTexts((), (), f"every sentence of {self.name} is judged")


def _is_header(cells: Sequence[str]) -> bool:
    return any(column_name(cell) in spellings for cell in cells for spellings in NAMES.values()) and not any(map(_is_number, cells))


def _columns(cells: Sequence[str], where: str) -> tuple[int, int, int]:
    """The places of both sentences and the score, by the header if there is one."""
    found = find_columns(cells, NAMES) if _is_header(cells) else None
    if found is not None:
        return found["first"], found["second"], found["score"]
    if len(cells) != 3:
        raise TaskError(f"{where}: found {cells!r:.120}; expected {EXPECTED}")
    return 0, 1, 2


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _parse_score(cell: str) -> float | None:
    """A finite score; None for anything else, `nan` included."""
    return float(cell) if _is_number(cell) and math.isfinite(float(cell)) else None
