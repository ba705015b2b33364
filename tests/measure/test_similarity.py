"""Similarity functions: those of sentence-transformers, in a corpus, in pools and by pair."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from optbench.measure.accuracy import Side, embed_texts, measure_accuracy
from optbench.measure.ranking import NearestDocuments, PoolScores
from optbench.measure.similarity import pair_similarities, similarities
from optbench.model.settings import Similarity
from optbench.tasks.base import PairData

FUNCTIONS: tuple[Similarity, ...] = ("cosine", "dot", "euclidean", "manhattan")


@pytest.mark.parametrize("similarity", FUNCTIONS)
def test_similarities_are_those_of_sentence_transformers(similarity: Similarity) -> None:
    from sentence_transformers import SimilarityFunction

    generator = np.random.default_rng(5)
    queries, documents = (generator.normal(size=(count, 8)).astype(np.float32) for count in (4, 6))
    if similarity == "cosine":  # which takes rows of length 1
        queries, documents = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, documents))
    expected = SimilarityFunction.to_similarity_fn(similarity)(queries, documents).numpy()
    np.testing.assert_allclose(similarities(queries, documents, similarity), expected, atol=1e-5)
    np.testing.assert_allclose(pair_similarities(queries, documents[:4], similarity), np.diag(expected), atol=1e-5)


def test_ranking_by_each_function_puts_another_document_first() -> None:
    queries = np.array([[1.0, 0.0]], dtype=np.float32)
    # Longest along the query; nearest in a straight line; nearest along the axes.
    documents = np.array([[9.0, 9.0], [1.1, 0.6], [1.6, 0.0], [0.0, 1.0]], dtype=np.float32)
    first, names = {}, ["a", "b", "c", "d"]
    for similarity in ("dot", "euclidean", "manhattan"):
        nearest, pools = NearestDocuments(queries, 1, similarity), PoolScores(queries, names, [names], 1, similarity)
        for ranking in (nearest, pools):
            ranking.add(documents)
        assert nearest.ranked(names) == pools.ranked(names)
        first[similarity] = pools.ranked(names)[0][0]
    assert first == {"dot": "a", "euclidean": "c", "manhattan": "c"}


def test_texts_keep_their_length_unless_compared_by_cosine() -> None:
    def encode(texts: Sequence[str], side: Side) -> NDArray[np.float32]:
        return np.array([[3.0, 4.0]], dtype=np.float32)

    assert np.linalg.norm(embed_texts(encode, ["a"], "query", "dot")) == 5
    assert np.linalg.norm(embed_texts(encode, ["a"], "query")) == pytest.approx(1)


def test_pairs_are_judged_by_the_models_own_function() -> None:
    rows = {"a": [1.0, 0.0], "b": [1.0, 0.0], "c": [5.0, 5.0], "d": [2.0, 0.0]}
    data = PairData(name="pairs", first=("a", "a", "a"), second=("b", "c", "d"), scores=(1.0, 3.0, 2.0), language="en", synthetic=False)

    def encode(texts: Sequence[str], side: Side) -> NDArray[np.float32]:
        return np.array([rows[text] for text in texts], dtype=np.float32)

    # By dot product 1, 5, 2: the order of the scores. By cosine 1, 0.7, 1: not.
    assert measure_accuracy(encode, data, similarity="dot").mean() == pytest.approx(1)
    assert measure_accuracy(encode, data).mean() < 0.5
