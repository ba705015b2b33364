"""Accuracy tasks: what a model's vectors are judged by.

In: a recipe's `tasks` entry or the command line's `--task`, and the files, package data or MTEB data set that it names.
Out: queries, documents and human judgments (`RetrievalData`) or scored sentence pairs (`PairData`) in each language; texts to calibrate
on that are not in the test (`CalibrationTexts`); and the test texts, for training to avoid (`JudgedTexts`).

`TASKS` is the registry.
"""

from pathlib import Path
from typing import Annotated

from optbench.errors import TaskError
from optbench.machine.registry import Registry
from optbench.tasks.base import BaseTask, CalibrationTexts, PairData, RetrievalData, load_tasks
from optbench.tasks.judged import JudgedTexts, judged_texts

__all__ = [
    "TASKS",
    "BaseTask",
    "CalibrationTexts",
    "JudgedTexts",
    "PairData",
    "RetrievalData",
    "Task",
    "judged_texts",
    "load_tasks",
    "parse_task",
]

TASKS = Registry[BaseTask]("task", __name__, {"retail": "Retail", "beir": "Beir", "xquadr": "XquadR", "sts": "Sts", "mteb": "Mteb"})
Task = Annotated[BaseTask, TASKS]

ACCEPTED = (
    "`retail` (the embedded synthetic task), a BEIR folder (corpus.jsonl[.gz], queries.jsonl, qrels/test.tsv), "
    "an XQuAD-R file (.json), sentence pairs (.csv of sentence1,sentence2,score), a folder of either with one per language, or `mteb:NAME`"
)


def parse_task(text: str) -> Task:
    """Read the command line's `--task`: a name or a path. All other options keep their defaults; to set them, use a recipe.

    Raises:
        TaskError: `text` names no task; lists the accepted forms.
    """
    from optbench.tasks.beir import Beir
    from optbench.tasks.mteb import Mteb
    from optbench.tasks.retail import Retail
    from optbench.tasks.sts import Sts
    from optbench.tasks.xquadr import XquadR

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
            raise TaskError(f"--task {text}: a folder with neither corpus.jsonl nor files of one type, .json or .csv; expected {ACCEPTED}")
        return XquadR(path=path) if suffixes == {".json"} else Sts(path=path)
    if not path.is_file():
        raise TaskError(f"--task {text}: no such file or folder; expected {ACCEPTED}")
    if path.suffix == ".json":
        return XquadR(path=path)
    if path.suffix == ".csv":
        return Sts(path=path)
    raise TaskError(f"--task {text}: a {path.suffix or 'extensionless'} file; expected {ACCEPTED}")
