"""Documents in order of cosine, exactly and in bounded memory."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["rank_corpus", "rank_pools"]

Vectors = NDArray[np.float32]
# A block of scores takes at most 64 MB.
BLOCK_SCORES = 16_000_000
DOCUMENTS_PER_BLOCK = 8192


def rank_pools(
    queries: Vectors, documents: Vectors, document_ids: Sequence[str], pools: Sequence[Sequence[str]], depth: int
) -> list[tuple[str, ...]]:
    """Each query's own pool, best first.

    Args:
        queries: (queries, dimension), rows of length 1.
        documents: (documents, dimension), rows of length 1, in the order of `document_ids`.
        document_ids: unique.
        pools: a list of document ids for each query.
        depth: how many of the best to return.
    """
    row = {document: index for index, document in enumerate(document_ids)}
    ranked = []
    for query, pool in zip(queries, pools, strict=True):
        rows = np.array([row[document] for document in pool])
        scores = np.asarray(documents[rows], dtype=np.float32) @ query
        ranked.append(_best_first(dict(zip(pool, scores.tolist(), strict=True)), depth))
    return ranked


def rank_corpus(queries: Vectors, documents: Vectors, document_ids: Sequence[str], depth: int) -> list[tuple[str, ...]]:
    """The whole corpus for each query, the `depth` best first.

    Args:
        queries: (queries, dimension), rows of length 1.
        documents: (documents, dimension), rows of length 1; a memory map is read block by block.
        document_ids: unique.
        depth: how many of the best to return.
    """
    queries_per_block = max(1, BLOCK_SCORES // DOCUMENTS_PER_BLOCK)
    ranked = []
    for first in range(0, len(queries), queries_per_block):
        block = queries[first : first + queries_per_block]
        scores, rows = np.empty((len(block), 0), dtype=np.float32), np.empty((len(block), 0), dtype=np.int64)
        for start in range(0, len(documents), DOCUMENTS_PER_BLOCK):
            part = np.asarray(documents[start : start + DOCUMENTS_PER_BLOCK], dtype=np.float32)
            scores = np.concatenate([scores, block @ part.T], axis=1)
            rows = np.concatenate([rows, np.broadcast_to(np.arange(start, start + len(part)), (len(block), len(part)))], axis=1)
            scores, rows = _keep_best(scores, rows, depth)
        for row_scores, row_ids in zip(scores.tolist(), rows.tolist(), strict=True):
            best = {document_ids[index]: score for index, score in zip(row_ids, row_scores, strict=True)}
            ranked.append(_best_first(best, depth))
    return ranked


def _keep_best(scores: Vectors, rows: NDArray[np.int64], depth: int) -> tuple[Vectors, NDArray[np.int64]]:
    if scores.shape[1] <= depth:
        return scores, rows
    kept = np.argpartition(scores, -depth, axis=1)[:, -depth:]
    return np.take_along_axis(scores, kept, axis=1), np.take_along_axis(rows, kept, axis=1)


def _best_first(scores: Mapping[str, float], depth: int) -> tuple[str, ...]:
    """Best first; equal scores stand in the order of a hash of the id.

    The order in which judgments are listed often follows the grade: a model that gives every text one vector must not profit.
    """
    return tuple(sorted(scores, key=lambda document: (-scores[document], hashlib.blake2b(document.encode()).digest()))[:depth])
