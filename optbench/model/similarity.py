"""How embeddings are compared: sentence-transformers' four similarity functions, on numpy arrays.

Source: sentence_transformers/util/similarity.py, 6.2. A larger value is more similar, so distances are negative.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["similarity"]

# scipy's names for the distances.
DISTANCES = {"euclidean": "euclidean", "manhattan": "cityblock"}
# torch.nn.functional.normalize divides by at least this.
NORM_MIN = 1e-12


def similarity(name: str, first: ArrayLike, second: ArrayLike) -> NDArray[np.float32]:
    """Compare each embedding of `first` with each of `second`.

    Args:
        name: `cosine`, `dot`, `euclidean` or `manhattan`.
        first: (n, dimension), or (dimension,) for one embedding.
        second: (m, dimension) or (dimension,).

    Returns:
        (n, m) float32.

    Raises:
        ValueError: embeddings of other shapes, or of unequal dimensions.
    """
    rows, columns = (np.atleast_2d(np.asarray(each, dtype=np.float32)) for each in (first, second))
    if rows.ndim != 2 or columns.ndim != 2 or rows.shape[1] != columns.shape[1]:
        raise ValueError(
            f"similarity of embeddings of shapes {np.shape(first)} and {np.shape(second)}: expected (n, dimension) and (m, dimension)"
        )
    if name in DISTANCES:
        from scipy.spatial.distance import cdist

        return np.asarray(-cdist(rows, columns, DISTANCES[name]), dtype=np.float32)
    if name == "cosine":
        rows, columns = (each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), NORM_MIN) for each in (rows, columns))
    scores: NDArray[np.float32] = rows @ columns.T
    return scores
