"""Accuracy: how well a model's vectors rank what people judged, query by query.

Documents and queries go through the same `encode`, each text once, longest last; rankings are by cosine, and the metrics come
from ir-measures (trec_eval's code). Values are kept per query, because only paired ones can tell two models apart.

Beside the fp32 base a model has two accuracies: with documents and queries of its own, and with its queries against the document
vectors that the base made, as in a team's index that exists already.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from optbench.errors import MeasureError, TaskError
from optbench.machine.frozen import Frozen
from optbench.measure.fidelity import cosines
from optbench.measure.ranking import NearestDocuments, PoolScores
from optbench.measure.statistics import Change, paired_relative_change
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
"""Texts without prompts and their side, to (texts, dimension): the encoder puts the side's prompt in front."""

Index = Literal["own", "fp32"]
"""Whose document vectors are searched: the measured model's own, or those that the fp32 base made."""

CUTOFF = 10
# Documents that are embedded and ranked at a time: 64 MB of vectors at dimension 1024. Sorting by length within so many leaves
# next to no padding.
WINDOW = 16_384


class QuerySide(Frozen):
    """A model's queries against the document vectors of the fp32 base.

    Attributes:
        metrics: as those of `AccuracyResult`. For pairs: the first sentence embedded by the model, the second by the base.
        overlap: as that of `AccuracyResult`.
    """

    metrics: dict[str, dict[str, float]]
    overlap: dict[str, float] | None = None


class AccuracyResult(Frozen):
    """A model's accuracy on one task.

    Attributes:
        task: the task's name.
        synthetic: the task is made up; say so wherever its figures appear.
        language: of the task's texts.
        main_metric: the metric a verdict reads.
        n_queries: queries (or pairs) that `main_metric` is over.
        n_left_out: queries left out of it because no ranking of theirs can be right or wrong.
        n_documents: documents that were ranked; 0 for pairs.
        metrics: name to query id to value; `full nDCG@10` stands beside `nDCG@10` where both rankings were asked for.
        weight: of the task in the mean over tasks.
        overlap: query id to the share of the fp32 base's ten nearest documents that are among the model's own ten nearest, out of
            all documents that the task embeds, in any order; None for the base itself and for pairs.
        query_side: the same with the base's documents; None for the base itself, and where the two models' dimensions differ.
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
        """A metric's mean over the queries; that of `main_metric` when no name is given."""
        values = self.metrics[name or self.main_metric]
        return sum(values.values()) / len(values)

    def on_index(self, index: Index) -> Self:
        """This result as it is on that index; nothing but `metrics` and `overlap` differs.

        Raises:
            MeasureError: it was not measured on the fp32 base's.
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
    on_window: Callable[[int, int], None] = lambda window, windows: None,
) -> AccuracyResult:
    """Run a task.

    Documents pass by in windows, so that memory does not grow with the corpus.

    Args:
        encode: the model.
        data: what `task.load()` gave.
        base: the fp32 base, for `overlap` and `query_side`. It is asked for the vectors of all documents again: keep them.
        document_embeddings: (len(data.candidates), dimension), rows of length 1, a memory map will do: an index that exists
            already; `encode` then embeds no document.
        query_embeddings: (len(data.queries), dimension), likewise.
        on_window: is told, before documents are embedded, which window of how many comes.

    Raises:
        MeasureError: the model gave NaN, infinity, zero or a wrong shape; names the first text.
        TaskError: no query can be ranked.
    """
    if isinstance(data, PairData):
        return _measure_pairs(encode, data, base)
    queries = embed_queries(encode, data) if query_embeddings is None else query_embeddings
    own = _Rankings(data, queries)
    for window in embed_documents(encode, data, on_window) if document_embeddings is None else (document_embeddings,):
        own.add(window)
    overlap, query_side = None, None
    if base is not None:
        base_queries = embed_queries(base, data)
        reference = _nearest(data, base_queries)
        # Queries of another dimension find nothing in the base's index.
        beside = _Rankings(data, queries) if queries.shape == base_queries.shape else None
        for window in embed_documents(base, data):
            reference.add(window)
            if beside is not None:
                beside.add(window)
        nearest = _ranked(data, reference)
        overlap = own.overlap(nearest)
        query_side = None if beside is None else QuerySide(metrics=beside.metrics(), overlap=beside.overlap(nearest))
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


def _nearest(data: RetrievalData, queries: Vectors) -> NearestDocuments:
    """Keeps one more than is asked for where a query's own document will be left out."""
    return NearestDocuments(queries, CUTOFF + data.without_itself)


def _ranked(data: RetrievalData, nearest: NearestDocuments) -> list[tuple[str, ...]]:
    """The best documents of each query, at most as many as are asked for."""
    tops = nearest.ranked(data.candidates)
    if not data.without_itself:
        return tops
    return [tuple(name for name in top if name != query)[:CUTOFF] for query, top in zip(data.queries, tops, strict=True)]


class _Rankings:
    """Every ranking that a task asks for, of one set of queries, over documents that pass by in windows."""

    def __init__(self, data: RetrievalData, queries: Vectors) -> None:
        self._data, self._dimension, self._rows = data, queries.shape[1], 0
        self._nearest = _nearest(data, queries)
        wanted: tuple[Literal["judged", "full"], ...] = ("judged", "full") if data.ranking == "both" else (data.ranking,)
        self._rankable = {ranking: data.rankable(ranking) for ranking in wanted}
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
            self._pools = PoolScores(queries[[row[query] for query in judged]], data.candidates, pools, CUTOFF)

    def add(self, window: Vectors) -> None:
        """The next documents, (documents, dimension)."""
        self._rows += len(window)
        self._check(window.shape[1], self._rows <= len(self._data.candidates))
        self._nearest.add(window)
        if self._pools is not None:
            self._pools.add(window)

    def _check(self, dimension: int, rows_fit: bool) -> None:
        if dimension != self._dimension or not rows_fit:
            raise MeasureError(
                f"{self._data.name}: document vectors have shape {(self._rows, dimension)}, "
                f"{(len(self._data.candidates), self._dimension)} wanted; embed this task's documents with the model of the queries"
            )

    def metrics(self) -> dict[str, dict[str, float]]:
        """Values by metric and query, once all documents have passed."""
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
        """The share of each query's reference documents that are among its nearest here."""
        nearest = _ranked(self._data, self._nearest)
        shares = [len(set(old) & set(new)) / len(old) for old, new in zip(reference, nearest, strict=True)]
        return {query: round(share, 6) for query, share in zip(self._data.queries, shares, strict=True)}


def embed_documents(
    encode: Encode, data: RetrievalData, on_window: Callable[[int, int], None] = lambda window, windows: None
) -> Iterator[Vectors]:
    """The vectors of `data.candidates` in that order, window after window: (documents, dimension) each."""
    windows = -(-len(data.candidates) // WINDOW)
    for window in range(windows):
        on_window(window, windows)
        names = data.candidates[window * WINDOW : (window + 1) * WINDOW]
        yield embed_texts(encode, [data.documents[name] for name in names], "document")


def embed_queries(encode: Encode, data: RetrievalData) -> Vectors:
    """The vectors of `data.queries`, (queries, dimension), in that order."""
    return embed_texts(encode, list(data.queries.values()), "query")


def embed_texts(encode: Encode, texts: Sequence[str], side: Side) -> Vectors:
    """Embed each distinct text once, in order of length, so that a batch holds little padding.

    Returns:
        (texts, dimension) float32, rows of length 1.

    Raises:
        MeasureError: NaN, infinity, zero or a wrong shape; names the first text.
    """
    if not texts:
        raise TaskError("no texts to embed; a task needs at least one query and one document")
    distinct = sorted(set(texts), key=lambda text: (len(text), text))
    vectors = np.asarray(encode(distinct, side), dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != len(distinct):
        raise MeasureError(f"the model gave vectors of shape {vectors.shape} for {len(distinct)} texts; (texts, dimension) wanted")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unusable = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
    if unusable.size:
        raise MeasureError(
            f"broken model: NaN, infinity or zero for {unusable.size} of {len(distinct)} texts, first {distinct[unusable[0]]!r:.120}; "
            "leave out the step that made it, or change its options"
        )
    row = {text: index for index, text in enumerate(distinct)}
    unit: Vectors = (vectors / lengths)[[row[text] for text in texts]]
    return unit


def accuracy_change(baseline: AccuracyResult, candidate: AccuracyResult, *, metric: str | None = None, seed: int = 0) -> Change:
    """The relative change of a metric's mean from one model to another, with its 95 % interval over the queries.

    Args:
        baseline: usually fp32.
        candidate: of the same task.
        metric: its name; the one that judges when left out.
        seed: of the bootstrap.

    Raises:
        MeasureError: the two are not of the same task and queries.
    """
    name = metric or baseline.main_metric
    if baseline.task != candidate.task or name not in baseline.metrics or name not in candidate.metrics:
        raise MeasureError(f"{name} of {baseline.task} cannot be compared with that of {candidate.task}; measure both on one task")
    return paired_relative_change(baseline.metrics[name], candidate.metrics[name], seed=seed)


def _score(data: RetrievalData, ranked: Mapping[str, Sequence[str]], prefix: str) -> dict[str, dict[str, float]]:
    """The metrics of rankings, by metric and query; `prefix` goes before the metrics' names."""
    import ir_measures

    # Grade 0 earns 0 in either gain; ir-measures leaves the grades that the mapping lacks as they are.
    measures = {
        f"nDCG@{CUTOFF}": ir_measures.nDCG(gains=dict(data.gains)) @ CUTOFF,
        f"R@{CUTOFF}": ir_measures.R(rel=data.relevant_from) @ CUTOFF,
        f"MRR@{CUTOFF}": ir_measures.RR(rel=data.relevant_from) @ CUTOFF,
    }
    # Ranks, not cosines, go to trec_eval: it holds scores as 32-bit floats and would break its own ties by document id.
    run = {query: {document: float(-place) for place, document in enumerate(top)} for query, top in ranked.items()}
    judgments = {query: dict(data.relevance[query]) for query in ranked}
    values: dict[str, dict[str, float]] = {prefix + name: dict.fromkeys(ranked, 0.0) for name in measures}
    names = {measure: prefix + name for name, measure in measures.items()}
    for value in ir_measures.iter_calc(list(measures.values()), judgments, run):
        values[names[value.measure]][value.query_id] = round(float(value.value), 6)
    return values


def _measure_pairs(encode: Encode, data: PairData, base: Encode | None) -> AccuracyResult:
    texts, n = [*data.first, *data.second], len(data.first)
    scores = np.asarray(data.scores, dtype=np.float64)

    def metrics(first: Vectors, second: Vectors) -> dict[str, dict[str, float]]:
        values = spearman_by_pair(cosines(first, second), scores)
        return {"Spearman": {f"pair{index}": round(float(value), 6) for index, value in enumerate(values)}}

    vectors = embed_texts(encode, texts, "query")
    query_side = None
    if base is not None:
        reference = embed_texts(base, texts, "query")
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
    """Spearman's correlation shared out over the pairs, so that it can be compared and resampled like a mean over queries.

    The shares are the jackknife's pseudo-values, moved so that their mean is the correlation itself; their spread is that of the
    correlation, ranks and ties included. Where all similarities are equal nothing is ranked and the correlation is 0.

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
        # Leaving a pair out lowers the ranks above its own by 1, and those tied with it by a half.
        lowered = [rank - (rank > rank[pair]) - 0.5 * (rank == rank[pair]) for rank in ranks]
        x, y = (np.delete(rank, pair) for rank in lowered)
        x, y = x - x.mean(), y - y.mean()
        spread = np.sqrt((x @ x) * (y @ y))
        without[pair] = (x @ y) / spread if spread > 0 else 0.0
    pseudo = n * whole - (n - 1) * without
    shares: NDArray[np.float64] = pseudo - pseudo.mean() + whole
    return shares
