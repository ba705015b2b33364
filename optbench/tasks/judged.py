"""The test texts of tasks, which training and calibration must avoid."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from optbench.tasks.base import BaseTask, PairData, RetrievalData, load_tasks, normalize_text

__all__ = ["JudgedTexts", "collect_judged", "judged_texts"]


@dataclass(frozen=True)
class JudgedTexts:
    """Test texts, normalized by `normalize_text`, each with the name of its task.

    Attributes:
        queries: queries, and both sentences of each pair.
        documents: judged documents, relevant or not; unjudged documents are not test texts.
    """

    queries: Mapping[str, str] = field(default_factory=dict)
    documents: Mapping[str, str] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Hash of the texts, independent of the names of the tasks."""
        return hashlib.sha256(json.dumps([sorted(self.queries), sorted(self.documents)]).encode()).hexdigest()

    def find_query(self, text: str) -> str | None:
        """The task that has `text` as a query, or None."""
        return self.queries.get(normalize_text(text))

    def find(self, text: str) -> str | None:
        """The task that has `text` as a query or judged document, or None."""
        return self.find_query(text) or self.documents.get(normalize_text(text))


def judged_texts(tasks: Iterable[BaseTask]) -> JudgedTexts:
    """Load tasks in all their languages, as `load_tasks` does, and collect their test texts."""
    return collect_judged(load_tasks(tasks))


def collect_judged(loaded: Iterable[RetrievalData | PairData]) -> JudgedTexts:
    """The test texts of loaded tasks."""
    queries: dict[str, str] = {}
    documents: dict[str, str] = {}
    for data in loaded:
        if isinstance(data, PairData):
            queries |= dict.fromkeys(map(normalize_text, (*data.first, *data.second)), data.name)
        else:
            queries |= dict.fromkeys(map(normalize_text, data.queries.values()), data.name)
            judged = {document for grades in data.relevance.values() for document in grades}
            documents |= dict.fromkeys((normalize_text(data.documents[name]) for name in judged), data.name)
    return JudgedTexts(queries, documents)
