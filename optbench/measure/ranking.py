"""Documents in order of cosine, exactly and in bounded memory: vectors pass by in windows, and only the best stay."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["NearestDocuments", "PoolScores", "rank_corpus"]

Vectors = NDArray[np.float32]
# A block of scores takes at most 64 MB, and so do the vectors that pools are scored with.
BLOCK_SCORES = 16_000_000
DOCUMENTS_PER_BLOCK = 8192


class NearestDocuments:
    """The `depth` best of a corpus for each query."""

    def __init__(self, queries: Vectors, depth: int) -> None:
        """Begin with no document.

        Args:
            queries: (queries, dimension), rows of length 1.
            depth: how many of the best to keep.
        """
        self._queries, self._depth, self._seen = queries, depth, 0
        self._scores = np.empty((len(queries), 0), dtype=np.float32)
        self._rows = np.empty((len(queries), 0), dtype=np.int64)

    def add(self, window: Vectors) -> None:
        """Score the next documents: (documents, dimension), rows of length 1."""
        for start in range(0, len(window), DOCUMENTS_PER_BLOCK):
            part = np.asarray(window[start : start + DOCUMENTS_PER_BLOCK], dtype=np.float32)
            rows = np.arange(self._seen, self._seen + len(part))
            self._seen += len(part)
            queries_per_block = max(1, BLOCK_SCORES // (len(part) + self._depth))
            kept = [self._merge(first, first + queries_per_block, part, rows) for first in range(0, len(self._queries), queries_per_block)]
            self._scores = np.concatenate([scores for scores, _ in kept])
            self._rows = np.concatenate([rows for _, rows in kept])

    def _merge(self, first: int, last: int, part: Vectors, rows: NDArray[np.int64]) -> tuple[Vectors, NDArray[np.int64]]:
        """The best of what queries `first` to `last` have and of `part`."""
        new = self._queries[first:last] @ part.T
        scores: Vectors = np.concatenate([self._scores[first:last], new], axis=1)
        if scores.shape[1] <= self._depth:
            return scores, np.concatenate([self._rows[first:last], np.broadcast_to(rows, new.shape)], axis=1)
        kept = np.argpartition(scores, -self._depth, axis=1)[:, -self._depth :]
        held = self._scores.shape[1]
        earlier = np.take_along_axis(self._rows[first:last], np.minimum(kept, held - 1), axis=1) if held else np.zeros_like(kept)
        return np.take_along_axis(scores, kept, axis=1), np.where(kept < held, earlier, rows[np.maximum(kept - held, 0)])

    def ranked(self, document_ids: Sequence[str]) -> list[tuple[str, ...]]:
        """For each query its best, best first; `document_ids` in the order in which the documents passed."""
        return [
            _best_first({document_ids[row]: score for row, score in zip(rows, scores, strict=True)}, self._depth)
            for rows, scores in zip(self._rows.tolist(), self._scores.tolist(), strict=True)
        ]


class PoolScores:
    """Each query's own pool of documents, best first."""

    def __init__(self, queries: Vectors, document_ids: Sequence[str], pools: Sequence[Sequence[str]], depth: int) -> None:
        """Begin with no document.

        Args:
            queries: (queries, dimension), rows of length 1.
            document_ids: unique, in the order in which the documents will pass.
            pools: a list of document ids for each query.
            depth: how many of the best to return.
        """
        wanted = {document for pool in pools for document in pool}
        row = {document: index for index, document in enumerate(document_ids) if document in wanted}
        pairs = [(row[document], query) for query, pool in enumerate(pools) for document in pool]
        order = sorted(range(len(pairs)), key=pairs.__getitem__)
        self._rows = np.array([pairs[index][0] for index in order], dtype=np.int64)
        self._of_query = np.array([pairs[index][1] for index in order], dtype=np.int64)
        self._scores = np.zeros(len(pairs), dtype=np.float32)
        self._queries, self._depth, self._seen = queries, depth, 0

    def add(self, window: Vectors) -> None:
        """Score the next documents: (documents, dimension), rows of length 1."""
        begin, end = np.searchsorted(self._rows, [self._seen, self._seen + len(window)])
        pairs_per_block = max(1, BLOCK_SCORES // window.shape[1])
        for start in range(begin, end, pairs_per_block):
            part = slice(start, min(start + pairs_per_block, end))
            documents, queries = window[self._rows[part] - self._seen], self._queries[self._of_query[part]]
            self._scores[part] = np.einsum("ij,ij->i", documents, queries)
        self._seen += len(window)

    def ranked(self, document_ids: Sequence[str]) -> list[tuple[str, ...]]:
        """For each query its pool, best first, `depth` at most."""
        scores: list[dict[str, float]] = [{} for _ in self._queries]
        for query, row, score in zip(self._of_query.tolist(), self._rows.tolist(), self._scores.tolist(), strict=True):
            scores[query][document_ids[row]] = score
        return [_best_first(each, self._depth) for each in scores]


def rank_corpus(queries: Vectors, documents: Vectors, document_ids: Sequence[str], depth: int) -> list[tuple[str, ...]]:
    """The whole corpus for each query, the `depth` best first.

    Args:
        queries: (queries, dimension), rows of length 1.
        documents: (documents, dimension), rows of length 1; a memory map is read block by block.
        document_ids: unique, in the order of `documents`.
        depth: how many of the best to return.
    """
    nearest = NearestDocuments(queries, depth)
    nearest.add(documents)
    return nearest.ranked(document_ids)


def _best_first(scores: Mapping[str, float], depth: int) -> tuple[str, ...]:
    """Best first; equal scores stand in the order of a hash of the id.

    The order in which judgments are listed often follows the grade: a model that gives every text one vector must not profit.
    """
    return tuple(sorted(scores, key=lambda document: (-scores[document], hashlib.blake2b(document.encode()).digest()))[:depth])
