"""Accuracy: how well a model's vectors rank what people judged, query by query.

Documents and queries go through the same `encode`, each text once, longest last; rankings are by cosine, and the metrics come
from ir-measures (trec_eval's code). Values are kept per query, because only paired ones can tell two models apart.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from optbench.errors import MeasureError, TaskError
from optbench.measure.fidelity import cosines
from optbench.measure.ranking import rank_corpus, rank_pools
from optbench.measure.statistics import Change, paired_relative_change
from optbench.tasks.base import PairData, RetrievalData

__all__ = ["AccuracyResult", "Encode", "accuracy_change", "embed_documents", "embed_queries", "embed_texts", "measure_accuracy"]

Side = Literal["query", "document"]
Vectors = NDArray[np.float32]
Encode = Callable[[Sequence[str], Side], Vectors]
"""Texts without prompts and their side, to (texts, dimension): the encoder puts the side's prompt in front."""

CUTOFF = 10


class AccuracyResult(BaseModel):
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
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    synthetic: bool
    language: str
    main_metric: str
    n_queries: int
    n_left_out: int
    n_documents: int
    metrics: dict[str, dict[str, float]]

    def mean(self, name: str | None = None) -> float:
        """A metric's mean over the queries; that of `main_metric` when no name is given."""
        values = self.metrics[name or self.main_metric]
        return sum(values.values()) / len(values)


def measure_accuracy(
    encode: Encode,
    data: RetrievalData | PairData,
    *,
    document_embeddings: Vectors | None = None,
    query_embeddings: Vectors | None = None,
) -> AccuracyResult:
    """Run a task.

    Args:
        encode: the model.
        data: what `task.load()` gave.
        document_embeddings: (len(data.candidates), dimension), from `embed_documents` of this or another model (a memory
            map will do), where an index already exists; `encode` then embeds queries only.
        query_embeddings: (len(data.queries), dimension), from `embed_queries`.

    Raises:
        MeasureError: the model gave NaN, infinity, zero or a wrong shape; names the first text.
        TaskError: no query can be ranked.
    """
    if isinstance(data, PairData):
        return _measure_pairs(encode, data)
    documents = embed_documents(encode, data) if document_embeddings is None else document_embeddings
    queries = embed_queries(encode, data) if query_embeddings is None else query_embeddings
    if documents.shape != (len(data.candidates), queries.shape[1]):
        raise MeasureError(
            f"{data.name}: document vectors have shape {documents.shape}, {(len(data.candidates), queries.shape[1])} wanted; "
            "embed this task's documents with a model of the same dimension"
        )
    metrics: dict[str, dict[str, float]] = {}
    rankings: tuple[Literal["judged", "full"], ...] = ("judged", "full") if data.ranking == "both" else (data.ranking,)
    for ranking in rankings:
        metrics |= _measure_ranking(data, ranking, queries, documents, prefix="" if ranking == rankings[0] else "full ")
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
    )


def embed_documents(encode: Encode, data: RetrievalData) -> Vectors:
    """The vectors of `data.candidates`, (candidates, dimension), in that order."""
    return embed_texts(encode, [data.documents[document] for document in data.candidates], "document")


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


def _measure_ranking(
    data: RetrievalData, ranking: Literal["judged", "full"], queries: Vectors, documents: Vectors, prefix: str
) -> dict[str, dict[str, float]]:
    import ir_measures

    rankable = data.rankable(ranking)
    if not rankable:
        raise TaskError(
            f"{data.name}: no query has {'judged documents of two grades' if ranking == 'judged' else 'a relevant document'}, "
            f"so {ranking} ranking measures nothing; choose the other ranking"
        )
    # Grade 0 earns 0 in either gain; ir-measures leaves the grades that the mapping lacks as they are.
    measures = {
        f"nDCG@{CUTOFF}": ir_measures.nDCG(gains=dict(data.gains)) @ CUTOFF,
        f"R@{CUTOFF}": ir_measures.R(rel=data.relevant_from) @ CUTOFF,
        f"MRR@{CUTOFF}": ir_measures.RR(rel=data.relevant_from) @ CUTOFF,
    }
    row = {query: index for index, query in enumerate(data.queries)}
    chosen = queries[[row[query] for query in rankable]]
    if ranking == "judged":
        pools = [tuple(data.relevance[query]) for query in rankable]
        ranked = rank_pools(chosen, documents, data.candidates, pools, CUTOFF)
    else:
        ranked = rank_corpus(chosen, documents, data.candidates, CUTOFF)
    # Ranks, not cosines, go to trec_eval: it holds scores as 32-bit floats and would break its own ties by document id.
    run = {query: {document: float(-place) for place, document in enumerate(top)} for query, top in zip(rankable, ranked, strict=True)}
    judgments = {query: dict(data.relevance[query]) for query in rankable}
    values: dict[str, dict[str, float]] = {prefix + name: dict.fromkeys(rankable, 0.0) for name in measures}
    names = {measure: prefix + name for name, measure in measures.items()}
    for value in ir_measures.iter_calc(list(measures.values()), judgments, run):
        values[names[value.measure]][value.query_id] = round(float(value.value), 6)
    return values


def _measure_pairs(encode: Encode, data: PairData) -> AccuracyResult:
    vectors = embed_texts(encode, [*data.first, *data.second], "query")
    similarity = cosines(vectors[: len(data.first)], vectors[len(data.first) :])
    values = spearman_by_pair(similarity, np.asarray(data.scores, dtype=np.float64))
    return AccuracyResult(
        task=data.name,
        synthetic=data.synthetic,
        language=data.language,
        main_metric="Spearman",
        n_queries=len(values),
        n_left_out=0,
        n_documents=0,
        metrics={"Spearman": {f"pair{index}": round(float(value), 6) for index, value in enumerate(values)}},
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
