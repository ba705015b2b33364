"""How alike two embeddings are, by the function that their model was trained for."""

import numpy as np
from numpy.typing import NDArray

from optbench.model.settings import Similarity
from optbench.model.similarity import similarity as compare

__all__ = ["comparable_rows", "pair_similarities", "similarities"]

# The order of the norm of a difference.
DISTANCES = {"euclidean": 2, "manhattan": 1}


def comparable_rows(vectors: NDArray[np.float32], similarity: Similarity) -> NDArray[np.float32]:
    """Rows that `similarities` takes: of length 1 for cosine, otherwise as the model gives them. No row is zero."""
    if similarity != "cosine":
        return vectors
    rows: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return rows


def similarities(queries: NDArray[np.float32], documents: NDArray[np.float32], similarity: Similarity) -> NDArray[np.float32]:
    """Every query, (queries, dimension), with every document, (documents, dimension): (queries, documents); a distance is negative."""
    return compare("dot" if similarity == "cosine" else similarity, queries, documents)


def pair_similarities(first: NDArray[np.float32], second: NDArray[np.float32], similarity: Similarity) -> NDArray[np.float64]:
    """Row by row, (pairs, dimension) each: (pairs,); a distance is negative."""
    one, other = first.astype(np.float64), second.astype(np.float64)
    if similarity in DISTANCES:
        values: NDArray[np.float64] = -np.linalg.norm(one - other, ord=DISTANCES[similarity], axis=1)
        return values
    products: NDArray[np.float64] = np.einsum("ij,ij->i", one, other)
    return products
