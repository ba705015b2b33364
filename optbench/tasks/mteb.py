"""Tasks of the Massive Text Embedding Benchmark (MTEB), read by the mteb library's own loaders.

Retrieval, reranking and STS tasks are supported. The other types (classification, clustering and so on) train a model on the vectors
and give no value per query, so two models cannot be compared query by query.

Source: Muennighoff et al. 2023, "MTEB", arXiv:2210.07316; Enevoldsen et al. 2025, "MMTEB", arXiv:2502.13595.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Literal

from pydantic import Field

from optbench.errors import TaskError
from optbench.machine.extras import require_extra
from optbench.tasks.base import BaseTask, CalibrationTexts, PairData, RetrievalData, calibrate_on_parts, spare_texts
from optbench.tasks.spool import keep_texts

__all__ = ["Mteb"]

ROWS = 1000


class Mteb(BaseTask):
    """An MTEB task. Needs `pip install 'optbench[mteb]'`, and the Hugging Face hub or its cache for the texts."""

    task: Literal["mteb"] = "mteb"
    mteb_name: str = Field(min_length=1, max_length=200, description="The task's name in MTEB, such as NFCorpus or STS17.")
    subsets: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="Subsets of the task, mostly languages such as en-en; by default all."
    )
    split: str | None = Field(default=None, description="By default test, or the first evaluation split of a task without test.")

    @property
    def name(self) -> str:
        """`mteb:` and the task's name, followed by the subset if only one is chosen."""
        return f"mteb:{self.mteb_name}" + (f":{self.subsets[0]}" if self.subsets and len(self.subsets) == 1 else "")

    def parts(self) -> tuple["Mteb", ...]:
        """One task for each subset.

        Raises:
            TaskError: mteb is not installed, or has no such task or subset.
        """
        known = self._described.metadata.hf_subsets
        if self.subsets is None and len(known) == 1:
            return (self,)
        return tuple(self.model_copy(update={"subsets": (subset,)}) for subset in self.subsets or known)

    def load(self) -> RetrievalData | PairData:
        """Read one subset.

        Raises:
            TaskError: mteb is not installed or cannot read the task, the type is not supported, or the task has several subsets.
        """
        from mteb.abstasks import AbsTaskRetrieval, AbsTaskSTS

        described = self._described
        metadata = described.metadata
        if not isinstance(described, AbsTaskRetrieval | AbsTaskSTS):
            raise TaskError(f"{self.name}: is a {metadata.type} task; choose a retrieval, reranking or STS task")
        subsets = self.subsets or tuple(metadata.hf_subsets)
        if len(subsets) != 1:
            raise TaskError(f"{self.name}: has {len(subsets)} subsets ({', '.join(subsets)}); load them one by one")
        subset = subsets[0]
        split = self.split or ("test" if "test" in metadata.eval_splits else metadata.eval_splits[0])
        task = _find(self.mteb_name, eval_splits=[split], hf_subsets=[subset] if metadata.is_multilingual else None)
        try:
            task.load_data()
            if isinstance(task, AbsTaskRetrieval):
                task.convert_v1_dataset_format_to_v2(num_proc=None)
            # STS tasks in one language have no level for the subset.
            rows: Any = task.dataset[subset] if metadata.is_multilingual or isinstance(task, AbsTaskRetrieval) else task.dataset
            rows = rows[split]
        except Exception as error:
            # Loaders pass on any error of the hub, the file system and the data set.
            raise TaskError(
                f"{self.name}: mteb cannot read split {split!r}: {type(error).__name__}: {str(error)[:300]}; "
                "make the hub reachable, or put its data set into the Hugging Face cache"
            ) from error
        codes = dict.fromkeys(code.split("-")[0] for code in metadata.hf_subsets_to_langscripts.get(subset, ()))
        language = "-".join(codes) or "und"
        return self._pairs(task, rows, language) if isinstance(task, AbsTaskSTS) else self._retrieval(task, rows, language)

    def calibration_texts(self, n: int, seed: int = 0) -> CalibrationTexts:
        """Draw unjudged documents, and as queries the first words of such documents, cut to the length of real queries.

        An STS task, in which every sentence is judged, has none.
        """
        parts = self.parts()
        if len(parts) > 1:
            return calibrate_on_parts(parts, n, seed)
        data = self.load()
        if isinstance(data, PairData):
            return CalibrationTexts((), (), f"every sentence of {self.name} is judged")
        return spare_texts(data, n, seed)

    def check_files(self) -> None:
        """Look for the mteb library, without importing it."""
        require_extra("mteb", self.name)

    @cached_property
    def _described(self) -> Any:
        """The task object of mteb, before any data is read."""
        task = _find(self.mteb_name)
        if task.metadata.dataset.get("trust_remote_code"):
            raise TaskError(f"{self.name}: its data set needs hub code (trust_remote_code), which optbench does not run; choose another")
        unknown = [subset for subset in self.subsets or () if subset not in task.metadata.hf_subsets]
        if unknown:
            raise TaskError(f"{self.name}: has no subset {', '.join(unknown)}; choose from {', '.join(task.metadata.hf_subsets)}")
        return task

    def _retrieval(self, task: Any, rows: Mapping[str, Any], language: str) -> RetrievalData:
        queries = dict(self._queries(rows["queries"]))
        relevance = {
            query: {document: max(int(grade), 0) for document, grade in judged.items()}
            for query, judged in rows["relevant_docs"].items()
            if query in queries and judged
        }
        candidates = rows.get("top_ranked")
        if candidates:
            # Reranking: each query has its own candidates; a candidate without a judgment counts as irrelevant.
            relevance = {
                query: dict.fromkeys(candidates[query], 0) | {document: judged.get(document, 0) for document in candidates[query]}
                for query, judged in relevance.items()
                if query in candidates
            }
        documents = keep_texts(_documents(rows["corpus"]))
        # As in mteb, a relevant document that is missing from the corpus lowers the score.
        return RetrievalData(
            name=self.name,
            language=language,
            queries={query: queries[query] for query in relevance},
            documents=documents,
            relevance=relevance,
            gain="linear",
            ranking="judged" if candidates else "full",
            without_itself=bool(task.ignore_identical_ids),
            attribution=f"{task.metadata.dataset['path']}, {task.metadata.license or 'license not stated'}",
        )

    def _queries(self, rows: Any) -> Iterator[tuple[str, str]]:
        for row in _batched(rows):
            if not isinstance(row["text"], str):
                raise TaskError(f"{self.name}: query {row['id']!r} is a conversation, not a text; choose another task")
            yield str(row["id"]), f"{row['text']} {row.get('instruction') or ''}".strip()

    def _pairs(self, task: Any, rows: Any, language: str) -> PairData:
        first, second = task.column_names
        if not isinstance(first, str) or not isinstance(second, str):
            raise TaskError(f"{self.name}: compares {task.modalities}, not texts; choose another task")
        return PairData(
            name=self.name,
            language=language,
            first=[str(text) for text in rows[first]],
            second=[str(text) for text in rows[second]],
            scores=[float(score) for score in rows["score"]],
            attribution=f"{task.metadata.dataset['path']}, {task.metadata.license or 'license not stated'}",
        )


def _find(name: str, **options: Any) -> Any:
    """The task object of mteb."""
    try:
        import mteb
    except ImportError as error:
        raise TaskError(f"mteb:{name}: mteb is not installed ({error}); pip install 'optbench[mteb]'") from error
    try:
        return mteb.get_task(name, **options)
    except KeyError as error:
        raise TaskError(f"mteb:{name}: mteb has no such task: {error.args[0]}") from error


def _batched(rows: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a data set, read in batches, which is ten times as fast as reading single rows."""
    for start in range(0, len(rows), ROWS):
        columns = rows[start : start + ROWS]
        for values in zip(*columns.values(), strict=True):
            yield dict(zip(columns, values, strict=True))


def _documents(rows: Any) -> Iterator[tuple[str, str]]:
    """Yield the id and text of each document, the title in front as in mteb."""
    for row in _batched(rows):
        text = f"{row.get('title') or ''} {row['text']}".strip()
        if text:
            yield str(row["id"]), text
