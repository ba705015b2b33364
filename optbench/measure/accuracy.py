"""Accuracy: how well a model's vectors rank documents against human judgments, query by query.

Documents and queries go through the same `encode`, each text once, shortest first. Rankings are by the model's own similarity;
ir-measures (trec_eval's code) computes the metrics. Values are kept per query, because comparing two models takes paired values.

A model has two accuracies: with its own vectors for queries and documents, and with its queries against the fp32 base's document
vectors, as in an existing index.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from optbench.errors import MeasureError, TaskError
from optbench.machine.frozen import Frozen
from optbench.measure.fidelity import cosines
from optbench.measure.ranking import NearestDocuments, PoolScores
from optbench.measure.similarity import comparable_rows, pair_similarities
from optbench.measure.statistics import Change, paired_relative_change
from optbench.model.settings import Similarity
from optbench.tasks.base import PairData, RetrievalData

__all__ = [
    "AccuracyResult",
    "Encode",
    "Index",
    "QuerySide",
    "accuracy_change",
    "embed_documents",
    "embed_queries",
    "embed_texts",
    "measure_accuracy",
]

Side = Literal["query", "document"]
Vectors = NDArray[np.float32]
Encode = Callable[[Sequence[str], Side], Vectors]
"""Embeds texts of one side: (texts, dimension). It prepends the side's prompt."""

Index = Literal["own", "fp32"]
"""Whose document vectors are searched: the measured model's own, or the fp32 base's."""

CUTOFF = 10
# Documents embedded and ranked at a time: 64 MB of vectors at dimension 1024. Sorted by length, so many need almost no padding.
WINDOW = 16_384


class QuerySide(Frozen):
    """A model's queries against the document vectors of the fp32 base; `metrics` and `overlap` are as in `AccuracyResult`.

    In a task of pairs, the model embeds the first sentence and the base the second.
    """

    metrics: dict[str, dict[str, float]]
    overlap: dict[str, float] | None = None


class AccuracyResult(Frozen):
    """A model's accuracy on one task.

    Attributes:
        synthetic: the task's texts are synthetic; reports say so next to every figure.
        main_metric: the metric that the verdict uses.
        n_queries: queries (or pairs) that `main_metric` averages.
        n_left_out: queries left out because every ranking of theirs scores the same.
        n_documents: documents ranked; 0 for pairs.
        metrics: name to query id to value; has both `nDCG@10` and `full nDCG@10` if both rankings were requested.
        weight: the task's weight in the mean over tasks.
        overlap: query id to the share of the fp32 base's ten nearest documents that are also among the model's ten nearest, in any
            order, over all documents of the task; None for the base itself and for pairs.
        query_side: accuracy in the base's index; None for the base itself, and if the two models' dimensions differ.
    """

    task: str
    synthetic: bool
    language: str
    main_metric: str
    n_queries: int
    n_left_out: int
    n_documents: int
    metrics: dict[str, dict[str, float]]
    weight: float = 1.0
    overlap: dict[str, float] | None = None
    query_side: QuerySide | None = None

    def mean(self, name: str | None = None) -> float:
        """The mean of a metric over the queries; by default of `main_metric`."""
        values = self.metrics[name or self.main_metric]
        return sum(values.values()) / len(values)

    def on_index(self, index: Index) -> Self:
        """This result with the `metrics` and `overlap` of that index.

        Raises:
            MeasureError: it was not measured on the fp32 base's index.
        """
        if index == "own":
            return self
        if self.query_side is None:
            raise MeasureError(f"{self.task}: was not measured against the fp32 base's documents; measure again, or judge by index: own")
        return self.model_copy(update={"metrics": self.query_side.metrics, "overlap": self.query_side.overlap})


def measure_accuracy(
    encode: Encode,
    data: RetrievalData | PairData,
    *,
    base: Encode | None = None,
    document_embeddings: Vectors | None = None,
    query_embeddings: Vectors | None = None,
    similarity: Similarity = "cosine",
) -> AccuracyResult:
    """Run a task.

    Documents are embedded window by window, so memory does not grow with the corpus.

    Args:
        encode: the model.
        data: from `task.load()`.
        base: the fp32 base, for `overlap` and `query_side`. It embeds all documents again, so cache its vectors.
        document_embeddings: (len(data.candidates), dimension), rows of length 1, possibly memory-mapped: an existing index. With it,
            `encode` embeds no document.
        query_embeddings: (len(data.queries), dimension), in the same form.
        similarity: how the model's vectors are compared.

    Raises:
        MeasureError: the model returned NaN, infinity, zero vectors or a wrong shape; names the first text.
        TaskError: no query can be ranked.
    """
    if isinstance(data, PairData):
        return _measure_pairs(encode, data, base, similarity)
    queries = embed_queries(encode, data, similarity) if query_embeddings is None else query_embeddings
    own = _Rankings(data, queries, similarity)
    for window in embed_documents(encode, data, similarity) if document_embeddings is None else (document_embeddings,):
        own.add(window)
    overlap, query_side = None, None
    if base is not None:
        base_queries = embed_queries(base, data, similarity)
        reference = _nearest(data, base_queries, similarity)
        # Queries of another dimension cannot be searched in the base's index.
        in_base_index = _Rankings(data, queries, similarity) if queries.shape == base_queries.shape else None
        for window in embed_documents(base, data, similarity):
            reference.add(window)
            if in_base_index is not None:
                in_base_index.add(window)
        nearest = _ranked(data, reference)
        overlap = own.overlap(nearest)
        if in_base_index is not None:
            query_side = QuerySide(metrics=in_base_index.metrics(), overlap=in_base_index.overlap(nearest))
    metrics = own.metrics()
    main_metric = f"nDCG@{CUTOFF}"
    n_queries = len(metrics[main_metric])
    return AccuracyResult(
        task=data.name,
        synthetic=data.synthetic,
        language=data.language,
        main_metric=main_metric,
        n_queries=n_queries,
        n_left_out=len(data.queries) - n_queries,
        n_documents=len(data.candidates),
        metrics=metrics,
        weight=data.weight,
        overlap=overlap,
        query_side=query_side,
    )


def _nearest(data: RetrievalData, queries: Vectors, similarity: Similarity) -> NearestDocuments:
    """Keep one more document if a query's own document will be dropped."""
    return NearestDocuments(queries, CUTOFF + data.without_itself, similarity)


def _ranked(data: RetrievalData, nearest: NearestDocuments) -> list[tuple[str, ...]]:
    """The CUTOFF best documents of each query, best first."""
    tops = nearest.ranked(data.candidates)
    if not data.without_itself:
        return tops
    return [tuple(name for name in top if name != query)[:CUTOFF] for query, top in zip(data.queries, tops, strict=True)]


class _Rankings:
    """All rankings of a task for one set of queries, over documents that arrive window by window."""

    def __init__(self, data: RetrievalData, queries: Vectors, similarity: Similarity) -> None:
        self._data, self._dimension, self._rows = data, queries.shape[1], 0
        self._nearest = _nearest(data, queries, similarity)
        rankings: tuple[Literal["judged", "full"], ...] = ("judged", "full") if data.ranking == "both" else (data.ranking,)
        self._rankable = {ranking: data.rankable(ranking) for ranking in rankings}
        for ranking, rankable in self._rankable.items():
            if not rankable:
                raise TaskError(
                    f"{data.name}: no query has {'judged documents of two grades' if ranking == 'judged' else 'a relevant document'}, "
                    f"so {ranking} ranking measures nothing; choose the other ranking"
                )
        self._pools: PoolScores | None = None
        if "judged" in self._rankable:
            row = {query: index for index, query in enumerate(data.queries)}
            judged = self._rankable["judged"]
            pools = [tuple(data.relevance[query]) for query in judged]
            self._pools = PoolScores(queries[[row[query] for query in judged]], data.candidates, pools, CUTOFF, similarity)

    def add(self, window: Vectors) -> None:
        """Rank the next documents: (documents, dimension)."""
        self._rows += len(window)
        self._check(window.shape[1], self._rows <= len(self._data.candidates))
        self._nearest.add(window)
        if self._pools is not None:
            self._pools.add(window)

    def _check(self, dimension: int, rows_fit: bool) -> None:
        if dimension != self._dimension or not rows_fit:
            raise MeasureError(
                f"{self._data.name}: document vectors have shape {(self._rows, dimension)}; expected "
                f"{(len(self._data.candidates), self._dimension)}; embed documents and queries of this task with one model"
            )

    def metrics(self) -> dict[str, dict[str, float]]:
        """Values by metric and query, once all documents have been added."""
        self._check(self._dimension, self._rows == len(self._data.candidates))
        found: dict[str, dict[str, float]] = {}
        for ranking, rankable in self._rankable.items():
            if ranking == "judged" and self._pools is not None:
                tops = dict(zip(rankable, self._pools.ranked(self._data.candidates), strict=True))
            else:
                ranked = dict(zip(self._data.queries, _ranked(self._data, self._nearest), strict=True))
                tops = {query: ranked[query] for query in rankable}
            found |= _score(self._data, tops, prefix="full " if found else "")
        return found

    def overlap(self, reference: Sequence[Sequence[str]]) -> dict[str, float]:
        """The share of each query's reference documents that are also its nearest here."""
        nearest = _ranked(self._data, self._nearest)
        shares = [len(set(old) & set(new)) / len(old) for old, new in zip(reference, nearest, strict=True)]
        return {query: round(share, 6) for query, share in zip(self._data.queries, shares, strict=True)}


def embed_documents(encode: Encode, data: RetrievalData, similarity: Similarity = "cosine") -> Iterator[Vectors]:
    """Embed `data.candidates` in order, window by window: (documents, dimension) each."""
    for start in range(0, len(data.candidates), WINDOW):
        names = data.candidates[start : start + WINDOW]
        yield embed_texts(encode, [data.documents[name] for name in names], "document", similarity)


def embed_queries(encode: Encode, data: RetrievalData, similarity: Similarity = "cosine") -> Vectors:
    """Embed `data.queries` in order: (queries, dimension)."""
    return embed_texts(encode, list(data.queries.values()), "query", similarity)


def embed_texts(encode: Encode, texts: Sequence[str], side: Side, similarity: Similarity = "cosine") -> Vectors:
    """Embed each distinct text once, sorted by length to keep padding low.

    Returns:
        (texts, dimension) float32, for cosine rows of length 1.

    Raises:
        MeasureError: NaN, infinity, a zero vector or a wrong shape; names the first text.
    """
    if not texts:
        raise TaskError("no texts to embed; a task needs at least one query and one document")
    distinct = sorted(set(texts), key=lambda text: (len(text), text))
    vectors = np.asarray(encode(distinct, side), dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != len(distinct):
        raise MeasureError(f"the model returned vectors of shape {vectors.shape}; expected ({len(distinct)}, dimension)")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unusable = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
    if unusable.size:
        raise MeasureError(
            f"broken model: NaN, infinity or zero for {unusable.size} of {len(distinct)} texts, first {distinct[unusable[0]]!r:.120}; "
            "remove the step that made it, or change its options"
        )
    row = {text: index for index, text in enumerate(distinct)}
    rows: Vectors = comparable_rows(vectors, similarity)[[row[text] for text in texts]]
    return rows


def accuracy_change(baseline: AccuracyResult, candidate: AccuracyResult, *, metric: str | None = None, seed: int = 0) -> Change:
    """The relative change of a metric's mean, by default the main metric's, with its 95 % interval over queries.

    Raises:
        MeasureError: the two results are of different tasks or queries.
    """
    name = metric or baseline.main_metric
    if baseline.task != candidate.task or name not in baseline.metrics or name not in candidate.metrics:
        raise MeasureError(f"{name} of {baseline.task} cannot be compared with that of {candidate.task}; measure both on one task")
    return paired_relative_change(baseline.metrics[name], candidate.metrics[name], seed=seed)


def _score(data: RetrievalData, ranked: Mapping[str, Sequence[str]], prefix: str) -> dict[str, dict[str, float]]:
    """Score rankings by metric and query; `prefix` is prepended to the metrics' names."""
    import ir_measures

    # Grade 0 has gain 0 in both schemes; ir-measures does not map grades that the mapping lacks.
    measures = {
        f"nDCG@{CUTOFF}": ir_measures.nDCG(gains=dict(data.gains)) @ CUTOFF,
        f"R@{CUTOFF}": ir_measures.R(rel=data.relevant_from) @ CUTOFF,
        f"MRR@{CUTOFF}": ir_measures.RR(rel=data.relevant_from) @ CUTOFF,
    }
    # trec_eval gets ranks, not cosines: it stores scores as 32-bit floats and breaks ties by document id.
    run = {query: {document: float(-place) for place, document in enumerate(top)} for query, top in ranked.items()}
    judgments = {query: dict(data.relevance[query]) for query in ranked}
    values: dict[str, dict[str, float]] = {prefix + name: dict.fromkeys(ranked, 0.0) for name in measures}
    names = {measure: prefix + name for name, measure in measures.items()}
    for value in ir_measures.iter_calc(list(measures.values()), judgments, run):
        values[names[value.measure]][value.query_id] = round(float(value.value), 6)
    return values


def _measure_pairs(encode: Encode, data: PairData, base: Encode | None, similarity: Similarity) -> AccuracyResult:
    texts, n = [*data.first, *data.second], len(data.first)
    scores = np.asarray(data.scores, dtype=np.float64)

    def metrics(first: Vectors, second: Vectors) -> dict[str, dict[str, float]]:
        alike = cosines(first, second) if similarity == "cosine" else pair_similarities(first, second, similarity)
        values = spearman_by_pair(alike, scores)
        return {"Spearman": {f"pair{index}": round(float(value), 6) for index, value in enumerate(values)}}

    vectors = embed_texts(encode, texts, "query", similarity)
    query_side = None
    if base is not None:
        reference = embed_texts(base, texts, "query", similarity)
        if reference.shape == vectors.shape:
            query_side = QuerySide(metrics=metrics(vectors[:n], reference[n:]))
    return AccuracyResult(
        task=data.name,
        synthetic=data.synthetic,
        language=data.language,
        main_metric="Spearman",
        n_queries=n,
        n_left_out=0,
        n_documents=0,
        metrics=metrics(vectors[:n], vectors[n:]),
        weight=data.weight,
        query_side=query_side,
    )


def spearman_by_pair(similarity: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Split Spearman's correlation into one value per pair, so that it can be compared and resampled like a mean over queries.

    The values are jackknife pseudo-values, shifted so that their mean equals the correlation. Their spread reflects the
    correlation's sampling error, ranks and ties included. If all similarities are equal, the correlation is 0.

    Args:
        similarity: (pairs,), finite.
        scores: (pairs,), finite, not all equal.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, equation 11.19.
    """
    from scipy import stats

    n = len(scores)
    if np.ptp(similarity) == 0:
        return np.zeros(n)
    ranks = [stats.rankdata(values) for values in (similarity, scores)]
    whole = float(np.corrcoef(*ranks)[0, 1])
    without = np.empty(n)
    for pair in range(n):
        # Removing a pair lowers the ranks above its own by 1, and tied ranks by 0.5.
        lowered = [rank - (rank > rank[pair]) - 0.5 * (rank == rank[pair]) for rank in ranks]
        x, y = (np.delete(rank, pair) for rank in lowered)
        x, y = x - x.mean(), y - y.mean()
        spread = np.sqrt((x @ x) * (y @ y))
        without[pair] = (x @ y) / spread if spread > 0 else 0.0
    pseudo = n * whole - (n - 1) * without
    shares: NDArray[np.float64] = pseudo - pseudo.mean() + whole
    return shares
