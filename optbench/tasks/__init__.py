"""Accuracy tasks: texts, queries and human judgments.

The union `Task` is the registry: a new task is one file, one line here, one test file.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from optbench.errors import TaskError
from optbench.tasks.base import BaseTask, CalibrationTexts, PairData, RetrievalData, load_tasks
from optbench.tasks.beir import Beir
from optbench.tasks.judged import JudgedTexts, judged_texts
from optbench.tasks.mteb import Mteb
from optbench.tasks.retail import Retail
from optbench.tasks.sts import Sts
from optbench.tasks.xquadr import XquadR

__all__ = [
    "BaseTask",
    "Beir",
    "CalibrationTexts",
    "JudgedTexts",
    "Mteb",
    "PairData",
    "Retail",
    "RetrievalData",
    "Sts",
    "Task",
    "XquadR",
    "judged_texts",
    "load_tasks",
    "parse_task",
]

Task = Annotated[Retail | Beir | XquadR | Sts | Mteb, Field(discriminator="task")]

ACCEPTED = (
    "`retail` (the embedded synthetic task), a BEIR folder (corpus.jsonl[.gz], queries.jsonl, qrels/test.tsv), "
    "an XQuAD-R file (.json), sentence pairs (.csv of sentence1,sentence2,score), a folder of either by language, or `mteb:NAME`"
)


def parse_task(text: str) -> Retail | Beir | XquadR | Sts | Mteb:
    """A task by one word or path, as the command line's `--task` gives it; options that it cannot say stand in a recipe.

    Raises:
        TaskError: nothing that is accepted; lists what is.
    """
    if text == "retail":
        return Retail()
    if text.startswith("mteb:"):
        return Mteb(mteb_name=text.removeprefix("mteb:"))
    path = Path(text)
    if path.is_dir():
        if any((path / name).is_file() for name in ("corpus.jsonl", "corpus.jsonl.gz")):
            return Beir.from_folder(path)
        suffixes = {file.suffix for file in path.iterdir()} & {".json", ".csv"}
        if len(suffixes) != 1:
            raise TaskError(f"--task {text}: a folder without corpus.jsonl, nor of .json or .csv files alone; accepted are {ACCEPTED}")
        return XquadR(path=path) if suffixes == {".json"} else Sts(path=path)
    if not path.is_file():
        raise TaskError(f"--task {text}: no such file or folder; accepted are {ACCEPTED}")
    if path.suffix == ".json":
        return XquadR(path=path)
    if path.suffix == ".csv":
        return Sts(path=path)
    raise TaskError(f"--task {text}: a {path.suffix or 'nameless'} file; accepted are {ACCEPTED}")
