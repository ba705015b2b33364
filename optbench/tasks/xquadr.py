"""XQuAD-R: retrieve the sentence that answers a question from all sentences of all paragraphs.

The file's `sentence_breaks` split paragraphs into sentences (1,180 for English), each embedded alone. The sentence in which the answer
starts is relevant (grade 1); all sentences are ranked. The paper's dual encoders also see the paragraph, and score higher.

Source: Roy et al. 2020, "LAReQA: Language-agnostic answer retrieval from a multilingual pool", arXiv:2004.05484.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from optbench.errors import TaskError
from optbench.tasks.base import BaseTask, CalibrationTexts, RetrievalData, calibrate_on_parts, draw, shorten_to_queries
from optbench.tasks.files import check_text, files_of, read_text

__all__ = ["XquadR"]

EXPECTED = "SQuAD JSON whose paragraphs have sentence_breaks, as in XQuAD-R"


class XquadR(BaseTask):
    """Answer-sentence retrieval from XQuAD-R files."""

    task: Literal["xquadr"] = "xquadr"
    path: Path = Field(description="A SQuAD JSON file with sentence_breaks, such as XQuAD-R's en.json, or a folder with one per language.")

    @property
    def name(self) -> str:
        """`xquadr:` and the stem of the file name, which is the language."""
        return f"xquadr:{self.path.stem}"

    def parts(self) -> tuple["XquadR", ...]:
        """One task for each file."""
        return tuple(self.model_copy(update={"path": path}) for path in files_of(self.path, (".json",), EXPECTED))

    def check_files(self) -> None:
        """Look for the files; raises TaskError where there is none."""
        self.parts()

    def load(self) -> RetrievalData:
        """Read questions and sentences. Equal sentences are one candidate, so that a copy is never a wrong answer."""
        queries: dict[str, str] = {}
        relevance: dict[str, dict[str, int]] = {}
        ids: dict[str, str] = {}
        for where, paragraph in self._paragraphs():
            try:
                place = f"{self.path}: {where}"
                context, breaks = (
                    check_text(paragraph["context"], place),
                    [(int(start), int(end)) for start, end in paragraph["sentence_breaks"]],
                )
                sentences = [context[start:end].strip() for start, end in breaks]
                for sentence in sentences:
                    ids.setdefault(sentence, f"s{len(ids)}")
                for entry in paragraph["qas"]:
                    start = entry["answers"][0]["answer_start"]
                    answering = next((i for i, (begin, end) in enumerate(breaks) if begin <= start < end), None)
                    if answering is None:
                        raise TaskError(
                            f"{self.path}: {where}: the answer to question {entry['id']!r} starts in no sentence; expected {EXPECTED}"
                        )
                    queries[str(entry["id"])] = check_text(entry["question"], place)
                    relevance[str(entry["id"])] = {ids[sentences[answering]]: 1}
            except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
                raise TaskError(f"{self.path}: {where}: {type(error).__name__}: {error}; expected {EXPECTED}") from error
        if not queries:
            raise TaskError(f"{self.path}: contains no questions; expected {EXPECTED}")
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
        """Draw sentences that answer no question, and as queries the first words of such sentences, cut to the length of real questions."""
        if self.path.is_dir():
            return calibrate_on_parts(self.parts(), n, seed)
        data = self.load()
        answers = {document for judged in data.relevance.values() for document in judged}
        spare = [text for document, text in data.documents.items() if document not in answers]
        tested = {*data.queries.values(), *(data.documents[document] for document in answers)}
        documents = draw(spare, n, seed, without=tested)
        if not documents:
            return CalibrationTexts((), (), f"every sentence of {self.name} answers a question")
        lengths = [len(question.split()) for question in data.queries.values()]
        queries = shorten_to_queries(spare, lengths, n, seed, without=tested)
        note = f"{len(documents)} sentences of {self.name} that answer no question; queries: first words of {len(queries)} such sentences"
        return CalibrationTexts(queries, documents, note)

    def _paragraphs(self) -> Iterator[tuple[str, dict[str, Any]]]:
        try:
            document = json.loads(read_text(self.path, EXPECTED))
        except ValueError as error:
            raise TaskError(f"{self.path}: not JSON ({error}); expected {EXPECTED}") from error
        try:
            for i, article in enumerate(document["data"]):
                for j, paragraph in enumerate(article["paragraphs"]):
                    yield f"data[{i}].paragraphs[{j}]", paragraph
        except (KeyError, TypeError) as error:
            raise TaskError(f"{self.path}: {type(error).__name__}: {error}; expected {EXPECTED}") from error
