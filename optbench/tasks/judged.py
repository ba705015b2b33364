"""What tasks ask and judge, so that nothing is trained on it."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from optbench.tasks.base import BaseTask, PairData, load_tasks, normalize_text

__all__ = ["JudgedTexts", "judged_texts"]


@dataclass(frozen=True)
class JudgedTexts:
    """Test texts, in the form that `normalize_text` gives, to the task each is of.

    Attributes:
        queries: what is asked, and both sentences of a pair.
        documents: what is judged, relevant or not; the rest of a corpus is no test text.
    """

    queries: Mapping[str, str] = field(default_factory=dict)
    documents: Mapping[str, str] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Hash of the texts, whichever tasks they are of."""
        return hashlib.sha256(json.dumps([sorted(self.queries), sorted(self.documents)]).encode()).hexdigest()

    def find_query(self, text: str) -> str | None:
        """The task that asks `text`; None where none does."""
        return self.queries.get(normalize_text(text))

    def find(self, text: str) -> str | None:
        """The task that asks or judges `text`; None where none does."""
        return self.find_query(text) or self.documents.get(normalize_text(text))


def judged_texts(tasks: Iterable[BaseTask]) -> JudgedTexts:
    """The test texts of tasks, all their languages, which are read for it.

    Raises:
        TaskError: a task's file is missing or broken.
    """
    queries: dict[str, str] = {}
    documents: dict[str, str] = {}
    for data in load_tasks(tasks):
        if isinstance(data, PairData):
            queries |= dict.fromkeys(map(normalize_text, (*data.first, *data.second)), data.name)
        else:
            queries |= dict.fromkeys(map(normalize_text, data.queries.values()), data.name)
            judged = {document for grades in data.relevance.values() for document in grades}
            documents |= dict.fromkeys((normalize_text(data.documents[name]) for name in judged), data.name)
    return JudgedTexts(queries, documents)
