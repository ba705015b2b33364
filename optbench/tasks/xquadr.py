"""XQuAD-R: find the sentence that answers a question, among all sentences of all paragraphs.

The candidates are the sentences as the file's own `sentence_breaks` cut them (1,180 for English), each embedded alone; the
one in which the answer starts is relevant (grade 1), and every candidate is ranked. An encoder that sees the whole paragraph
beside the sentence, as in the paper's dual encoders, scores higher.

Source: Roy et al. 2020, "LAReQA: Language-agnostic answer retrieval from a multilingual pool", arXiv:2004.05484.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from optbench.errors import TaskError
from optbench.tasks.base import BaseTask, CalibrationTexts, RetrievalData, calibrate_on_parts, draw, files_of, read_text, shorten_to_queries

__all__ = ["XquadR"]

WANTED = "SQuAD JSON whose paragraphs have sentence_breaks, as XQuAD-R's files do"


class XquadR(BaseTask):
    """Answer-sentence retrieval from one XQuAD-R file."""

    task: Literal["xquadr"] = "xquadr"
    path: Path = Field(description="A SQuAD JSON file with sentence_breaks, such as XQuAD-R's en.json, or a folder of them by language.")

    @property
    def name(self) -> str:
        """`xquadr:` and the file's stem, which is the language."""
        return f"xquadr:{self.path.stem}"

    def parts(self) -> tuple["XquadR", ...]:
        """One task a file."""
        return tuple(self.model_copy(update={"path": path}) for path in files_of(self.path, ".json", WANTED))

    def load(self) -> RetrievalData:
        """Read questions and sentences.

        Sentences that occur twice are one candidate, so that a copy cannot be the wrong answer.
        """
        queries: dict[str, str] = {}
        relevance: dict[str, dict[str, int]] = {}
        ids: dict[str, str] = {}
        for where, paragraph in self._paragraphs():
            try:
                context, breaks = paragraph["context"], [(int(start), int(end)) for start, end in paragraph["sentence_breaks"]]
                sentences = [context[start:end].strip() for start, end in breaks]
                for sentence in sentences:
                    ids.setdefault(sentence, f"s{len(ids)}")
                for entry in paragraph["qas"]:
                    start = entry["answers"][0]["answer_start"]
                    answering = next((i for i, (begin, end) in enumerate(breaks) if begin <= start < end), None)
                    if answering is None:
                        raise TaskError(
                            f"{self.path}: {where}: question {entry['id']!r} is answered outside every sentence; {WANTED} wanted"
                        )
                    queries[entry["id"]] = entry["question"]
                    relevance[entry["id"]] = {ids[sentences[answering]]: 1}
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise TaskError(f"{self.path}: {where}: {type(error).__name__}: {error}; {WANTED} is wanted") from error
        if not queries:
            raise TaskError(f"{self.path}: holds no questions; {WANTED} is wanted")
        return RetrievalData(
            name=self.name,
            language=self.path.stem if len(self.path.stem) == 2 else "und",
            queries=queries,
            documents={name: sentence for sentence, name in ids.items()},
            relevance=relevance,
            gain="linear",
            ranking="full",
            attribution="XQuAD-R, CC-BY-SA-4.0",
        )

    def calibration_texts(self, n: int, seed: int = 0) -> CalibrationTexts:
        """Sentences that answer no question, and beginnings of such sentences as long as real questions are."""
        if self.path.is_dir():
            return calibrate_on_parts(self.parts(), n, seed)
        data = self.load()
        answers = {document for judged in data.relevance.values() for document in judged}
        spare = [text for document, text in data.documents.items() if document not in answers]
        tested = {*data.queries.values(), *(data.documents[document] for document in answers)}
        documents = draw(spare, n, seed, without=tested)
        if not documents:
            raise TaskError(f"{self.path}: every sentence answers a question, so none is left to calibrate on; name another task")
        lengths = [len(question.split()) for question in data.queries.values()]
        queries = shorten_to_queries(spare, lengths, n, seed, without=tested)
        note = f"{len(documents)} sentences of {self.name} that answer nothing; {len(queries)} beginnings of such sentences as queries"
        return CalibrationTexts(queries, documents, note)

    def _paragraphs(self) -> Iterator[tuple[str, dict[str, Any]]]:
        try:
            document = json.loads(read_text(self.path, WANTED))
        except ValueError as error:
            raise TaskError(f"{self.path}: not JSON ({error}); {WANTED} is wanted") from error
        try:
            for i, article in enumerate(document["data"]):
                for j, paragraph in enumerate(article["paragraphs"]):
                    yield f"data[{i}].paragraphs[{j}]", paragraph
        except (KeyError, TypeError) as error:
            raise TaskError(f"{self.path}: {type(error).__name__}: {error}; {WANTED} is wanted") from error
