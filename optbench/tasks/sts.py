"""Semantic textual similarity (STS): Spearman's rank correlation between cosines and human scores of sentence pairs."""

import csv
import io
import math
import re
from pathlib import Path
from typing import Literal

from pydantic import Field

from optbench.errors import TaskError
from optbench.tasks.base import BaseTask, CalibrationTexts, PairData, files_of, read_text

__all__ = ["Sts"]

EXPECTED = "a CSV of sentence1,sentence2,score"


class Sts(BaseTask):
    """An STS task from a CSV file, with or without a header."""

    task: Literal["sts"] = "sts"
    path: Path = Field(description="A CSV file of sentence1,sentence2,score, or a folder of them, one a language.")

    @property
    def name(self) -> str:
        """`sts:` and the stem of the file name."""
        return f"sts:{self.path.stem}"

    def parts(self) -> tuple["Sts", ...]:
        """One task for each file."""
        return tuple(self.model_copy(update={"path": path}) for path in files_of(self.path, ".csv", EXPECTED))

    def load(self) -> PairData:
        """Read the pairs; a first line whose score is not a number is the header."""
        rows: list[tuple[str, str, float]] = []
        reader = csv.reader(io.StringIO(read_text(self.path, EXPECTED), newline=""), strict=True)
        try:
            for cells in reader:
                if not cells:
                    continue
                score = _parse_score(cells[-1])
                if score is None and reader.line_num == 1:
                    continue
                if len(cells) != 3 or score is None:
                    raise TaskError(f"{self.path}:{reader.line_num}: found {cells!r:.120}; expected {EXPECTED}")
                rows.append((cells[0], cells[1], score))
        except csv.Error as error:
            raise TaskError(f"{self.path}:{reader.line_num}: {error}; expected {EXPECTED}") from error
        if len({score for _, _, score in rows}) < 2:
            raise TaskError(f"{self.path}: {len(rows)} pairs with fewer than two different scores cannot be ranked; expected {EXPECTED}")
        language = re.search(r"(?:^|[-_.])([a-z]{2})(?:[-_.]|$)", self.path.stem)
        first, second, scores = zip(*rows, strict=True)
        return PairData(name=self.name, language=language[1] if language else "und", first=first, second=second, scores=scores)

    def calibration_texts(self, n: int, seed: int = 0) -> CalibrationTexts:
        """Not supported: every sentence of the file is in the test."""
        raise TaskError(f"{self.path}: every sentence of an STS file is judged, so none is left to calibrate on; choose another task")


def _parse_score(cell: str) -> float | None:
    try:
        score = float(cell)
    except ValueError:
        return None
    return score if math.isfinite(score) else None
