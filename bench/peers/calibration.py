"""A folder that the `datasets` library loads by path, the form in which optimum-intel and sentence-transformers take calibration texts."""

import json
from collections.abc import Sequence
from pathlib import Path

__all__ = ["COLUMN", "SPLIT", "write_calibration_set"]

COLUMN, SPLIT = "sentence", "train"


def write_calibration_set(folder: Path, texts: Sequence[str]) -> Path:
    """Write the texts as a data set of one split and one column; returns the folder."""
    folder.mkdir()
    lines = [json.dumps({COLUMN: text}) for text in texts]
    (folder / f"{SPLIT}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
