"""Exact ranking of documents by similarity in bounded memory: vectors arrive in windows, and only the best are kept."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from optbench.measure.similarity import pair_similarities, similarities
from optbench.model.settings import Similarity

__all__ = ["NearestDocuments", "PoolScores", "rank_corpus"]

Vectors = NDArray[np.float32]
# A block of scores takes at most 64 MB, as do the vectors that pools are scored with.
BLOCK_SCORES = 16_000_000
DOCUMENTS_PER_BLOCK = 8192


class NearestDocuments:
    """The `depth` nearest documents of a corpus for each row of `queries`: (queries, dimension), for cosine rows of length 1."""

    def __init__(self, queries: Vectors, depth: int, similarity: Similarity = "cosine") -> None:
        self._queries, self._depth, self._seen, self._similarity = queries, depth, 0, similarity
        self._scores = np.empty((len(queries), 0), dtype=np.float32)
        self._rows = np.empty((len(queries), 0), dtype=np.int64)

    def add(self, window: Vectors) -> None:
        """Score the next documents: (documents, dimension), for cosine rows of length 1."""
        for start in range(0, len(window), DOCUMENTS_PER_BLOCK):
            part = np.asarray(window[start : start + DOCUMENTS_PER_BLOCK], dtype=np.float32)
            rows = np.arange(self._seen, self._seen + len(part))
            self._seen += len(part)
            queries_per_block = max(1, BLOCK_SCORES // (len(part) + self._depth))
            kept = [self._merge(first, first + queries_per_block, part, rows) for first in range(0, len(self._queries), queries_per_block)]
            self._scores = np.concatenate([scores for scores, _ in kept])
            self._rows = np.concatenate([rows for _, rows in kept])

    def _merge(self, first: int, last: int, part: Vectors, rows: NDArray[np.int64]) -> tuple[Vectors, NDArray[np.int64]]:
        """Merge `part` into the best documents of queries `first` to `last`."""
        new = similarities(self._queries[first:last], part, self._similarity)
        scores: Vectors = np.concatenate([self._scores[first:last], new], axis=1)
        if scores.shape[1] <= self._depth:
            return scores, np.concatenate([self._rows[first:last], np.broadcast_to(rows, new.shape)], axis=1)
        kept = np.argpartition(scores, -self._depth, axis=1)[:, -self._depth :]
        held = self._scores.shape[1]
        earlier = np.take_along_axis(self._rows[first:last], np.minimum(kept, held - 1), axis=1) if held else np.zeros_like(kept)
        return np.take_along_axis(scores, kept, axis=1), np.where(kept < held, earlier, rows[np.maximum(kept - held, 0)])

    def ranked(self, document_ids: Sequence[str]) -> list[tuple[str, ...]]:
        """The documents of each query, best first; `document_ids` in the order of the documents added."""
        return [
            _best_first({document_ids[row]: score for row, score in zip(rows, scores, strict=True)}, self._depth)
            for rows, scores in zip(self._rows.tolist(), self._scores.tolist(), strict=True)
        ]


class PoolScores:
    """Ranks each query's own pool of documents.

    `queries` is (queries, dimension), for cosine rows of length 1. The document ids are unique, in the order in which the documents
    will be added.
    """

    def __init__(
        self, queries: Vectors, document_ids: Sequence[str], pools: Sequence[Sequence[str]], depth: int, similarity: Similarity = "cosine"
    ) -> None:
        pooled = {document for pool in pools for document in pool}
        row = {document: index for index, document in enumerate(document_ids) if document in pooled}
        pairs = [(row[document], query) for query, pool in enumerate(pools) for document in pool]
        order = sorted(range(len(pairs)), key=pairs.__getitem__)
        self._rows = np.array([pairs[index][0] for index in order], dtype=np.int64)
        self._of_query = np.array([pairs[index][1] for index in order], dtype=np.int64)
        self._scores = np.zeros(len(pairs), dtype=np.float32)
        self._queries, self._depth, self._seen, self._similarity = queries, depth, 0, similarity

    def add(self, window: Vectors) -> None:
        """Score the next documents: (documents, dimension), for cosine rows of length 1."""
        begin, end = np.searchsorted(self._rows, [self._seen, self._seen + len(window)])
        pairs_per_block = max(1, BLOCK_SCORES // window.shape[1])
        for start in range(begin, end, pairs_per_block):
            part = slice(start, min(start + pairs_per_block, end))
            documents, queries = window[self._rows[part] - self._seen], self._queries[self._of_query[part]]
            self._scores[part] = pair_similarities(documents, queries, self._similarity)
        self._seen += len(window)

    def ranked(self, document_ids: Sequence[str]) -> list[tuple[str, ...]]:
        """The `depth` best of each query's pool, best first."""
        scores: list[dict[str, float]] = [{} for _ in self._queries]
        for query, row, score in zip(self._of_query.tolist(), self._rows.tolist(), self._scores.tolist(), strict=True):
            scores[query][document_ids[row]] = score
        return [_best_first(each, self._depth) for each in scores]


def rank_corpus(queries: Vectors, documents: Vectors, document_ids: Sequence[str], depth: int) -> list[tuple[str, ...]]:
    """Rank a corpus for each query: the `depth` best, best first.

    Queries and documents are (queries, dimension) and (documents, dimension), rows of length 1. A memory map is read block by block.
    The document ids are unique, in the order of `documents`.
    """
    nearest = NearestDocuments(queries, depth)
    nearest.add(documents)
    return nearest.ranked(document_ids)


def _best_first(scores: Mapping[str, float], depth: int) -> tuple[str, ...]:
    """Best first; ties are broken by a hash of the id.

    Judgments are often listed by grade: breaking ties in that order would reward a model that gives every text the same vector.
    """
    return tuple(sorted(scores, key=lambda document: (-scores[document], hashlib.blake2b(document.encode()).digest()))[:depth])
