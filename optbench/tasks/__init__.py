"""Accuracy tasks: what a model's vectors are judged by.

In: a recipe's `tasks` entry or the command line's `--task`, and the files, package data or MTEB data set that it names.
Out: queries, documents and human judgments (`RetrievalData`) or scored sentence pairs (`PairData`) in each language; texts to calibrate
on that are not in the test (`CalibrationTexts`); and the test texts, for training to avoid (`JudgedTexts`).

`TASKS` is the registry.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from optbench.errors import TaskError
from optbench.machine.registry import Registry
from optbench.tasks.base import BaseTask, CalibrationTexts, PairData, RetrievalData, load_tasks
from optbench.tasks.judged import JudgedTexts, judged_texts

if TYPE_CHECKING:
    from optbench.tasks.sts import Sts
    from optbench.tasks.xquadr import XquadR

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
    "`retail` (the embedded synthetic task), a BEIR folder (corpus, queries, qrels/test.tsv), an XQuAD-R file (.json), scored sentence "
    "pairs (.csv, .tsv or .parquet of sentence1, sentence2, score), a folder of either with one per language, or `mteb:NAME`"
)


def parse_task(text: str) -> Task:
    """Read the command line's `--task`: a name or a path. All other options keep their defaults; to set them, use a recipe.

    Raises:
        TaskError: `text` names no task; lists the accepted forms.
    """
    from optbench.tasks.beir import Beir
    from optbench.tasks.files import find_table
    from optbench.tasks.mteb import Mteb
    from optbench.tasks.retail import Retail

    if text == "retail":
        return Retail()
    if text.startswith("mteb:"):
        return Mteb(mteb_name=text.removeprefix("mteb:"))
    path = Path(text)
    if path.is_dir():
        if find_table(path, "corpus") is not None:
            return Beir.from_folder(path)
        kinds = {kind for kind in map(_kind_of, path.iterdir()) if kind is not None}
        if len(kinds) != 1:
            raise TaskError(f"--task {text}: a folder with neither a corpus nor files of one kind, .json or pairs; expected {ACCEPTED}")
        return kinds.pop()(path=path)
    if not path.is_file():
        raise TaskError(f"--task {text}: no such file or folder; expected {ACCEPTED}")
    kind = _kind_of(path)
    if kind is None:
        raise TaskError(f"--task {text}: a {path.suffix or 'extensionless'} file; expected {ACCEPTED}")
    return kind(path=path)


def _kind_of(path: Path) -> "type[XquadR] | type[Sts] | None":
    from optbench.tasks.files import suffix_of
    from optbench.tasks.sts import SUFFIXES, Sts
    from optbench.tasks.xquadr import XquadR

    if suffix_of(path) == ".json":
        return XquadR
    return Sts if suffix_of(path) in SUFFIXES else None
