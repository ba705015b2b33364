import numpy as np
import pytest
from numpy.typing import NDArray

from optbench.measure.ranking import NearestDocuments, PoolScores, rank_corpus

NAMES = [f"d{number}" for number in range(50)]


@pytest.fixture
def vectors() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """5 queries and 50 documents."""
    generator = np.random.default_rng(3)
    queries, documents = (generator.normal(size=(count, 8)).astype(np.float32) for count in (5, 50))
    return queries, documents


def sorted_whole(queries: NDArray[np.float32], documents: NDArray[np.float32], depth: int) -> list[tuple[str, ...]]:
    return [tuple(NAMES[row] for row in np.argsort(-scores)[:depth]) for scores in queries @ documents.T]


def test_corpus_ranking_in_blocks_equals_a_full_sort(
    monkeypatch: pytest.MonkeyPatch, vectors: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> None:
    monkeypatch.setattr("optbench.measure.ranking.DOCUMENTS_PER_BLOCK", 7)
    monkeypatch.setattr("optbench.measure.ranking.BLOCK_SCORES", 34)  # two queries at a time
    assert rank_corpus(*vectors, NAMES, 10) == sorted_whole(*vectors, 10)


@pytest.mark.parametrize("window", [1, 7, 16, 50])
def test_windows_of_any_size_rank_as_the_whole_corpus_does(window: int, vectors: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
    queries, documents = vectors
    nearest, pools = NearestDocuments(queries, 10), PoolScores(queries, NAMES, [NAMES] * 5, 10)
    for start in range(0, 50, window):
        nearest.add(documents[start : start + window])
        pools.add(documents[start : start + window])
    assert nearest.ranked(NAMES) == sorted_whole(queries, documents, 10)
    assert pools.ranked(NAMES) == nearest.ranked(NAMES)


def test_pool_ranks_its_own_documents_only_whatever_their_order(vectors: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
    queries, documents = vectors
    pools = PoolScores(queries[:2], NAMES, [["d40", "d3", "d17"], ["d2"]], 10)
    for start in range(0, 50, 20):
        pools.add(documents[start : start + 20])
    order = sorted((40, 3, 17), key=lambda row: -float(queries[0] @ documents[row]))
    assert pools.ranked(NAMES) == [tuple(f"d{row}" for row in order), ("d2",)]


def test_fewer_documents_than_asked_for_are_all_ranked(vectors: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
    queries, documents = vectors
    assert rank_corpus(queries, documents[:4], NAMES, 10) == sorted_whole(queries, documents[:4], 4)
