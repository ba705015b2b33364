"""Fidelity: cosine similarity of a candidate's vectors to the reference's, text by text."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from optbench.errors import MeasureError
from optbench.machine.frozen import Frozen

__all__ = ["Fidelity", "cosines", "measure_fidelity"]


class Fidelity(Frozen):
    """Cosines between a reference's and a candidate's vectors of the same texts.

    Attributes:
        p01: 1st percentile.
        minimum: the worst text's cosine.
        worst: that text's index.
        n_broken: texts whose vector is NaN, infinite or zero; above 0 the model is broken.
    """

    mean: float
    p01: float
    minimum: float
    worst: int
    n_texts: int
    n_broken: int = 0


def measure_fidelity(reference: ArrayLike, candidate: ArrayLike) -> Fidelity:
    """Compare two models' vectors of the same texts; arguments and errors as in `cosines`."""
    values = cosines(reference, candidate)
    after = np.asarray(candidate)
    broken = ~np.isfinite(after).all(axis=1) | ~after.any(axis=1)
    return Fidelity(
        mean=float(values.mean()),
        p01=float(np.quantile(values, 0.01)),
        minimum=float(values.min()),
        worst=int(values.argmin()),
        n_texts=len(values),
        n_broken=int(broken.sum()),
    )


def cosines(reference: ArrayLike, candidate: ArrayLike) -> NDArray[np.float64]:
    """Cosines row by row, in float64.

    Args:
        reference: (texts, dimension), finite, no zero row.
        candidate: (texts, dimension). A row with a NaN or infinity counts as -1, the zero row as 0.

    Returns:
        (texts,) in [-1, 1].

    Raises:
        MeasureError: shapes differ, no texts, or the reference itself is broken.
    """
    before, after = np.asarray(reference, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    if before.ndim != 2 or before.shape != after.shape or len(before) == 0:
        raise MeasureError(f"fidelity: reference has shape {before.shape}, candidate {after.shape}; expected two of (texts, dimension)")
    lengths = np.linalg.norm(before, axis=1)
    unusable = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
    if unusable.size:
        raise MeasureError(
            f"fidelity: the reference is NaN, infinite or zero for {unusable.size} of {len(before)} texts, first text {unusable[0]}; "
            "the reference model is broken: download it again"
        )
    finite = np.asarray(np.isfinite(after).all(axis=1))
    after = np.where(finite[:, np.newaxis], after, 0.0)
    # Scaled by the largest entry first: the square of a huge finite value would overflow.
    after /= np.maximum(np.abs(after).max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    norms = np.linalg.norm(after, axis=1)
    products = np.einsum("ij,ij->i", before / lengths[:, np.newaxis], after)
    values = np.divide(products, norms, out=np.zeros(len(after)), where=norms > 0)
    return np.where(finite, np.clip(values, -1.0, 1.0), -1.0)
