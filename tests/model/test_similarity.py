"""The similarity functions against sentence-transformers' own."""

from typing import Any

import numpy as np
import pytest

from optbench.model.similarity import similarity


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_each_function_is_that_of_sentence_transformers(name: str) -> None:
    util = pytest.importorskip("sentence_transformers.util")
    generator = np.random.default_rng(0)
    first, second = generator.standard_normal((3, 8), dtype=np.float32), generator.standard_normal((5, 8), dtype=np.float32)
    first[1] = 0
    expected = util.SimilarityFunction.to_similarity_fn(name)(first, second).numpy()
    np.testing.assert_allclose(similarity(name, first, second), expected, atol=1e-5)


def test_one_embedding_is_a_row() -> None:
    assert similarity("dot", [1.0, 2.0], [[3.0, 4.0], [5.0, 6.0]]).tolist() == [[11.0, 17.0]]


@pytest.mark.parametrize("second", [[[1.0, 2.0, 3.0]], [[[1.0, 2.0]]]])
def test_embeddings_of_other_shapes_are_refused(second: Any) -> None:
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(.*\): expected"):
        similarity("cosine", [1.0, 2.0], second)
