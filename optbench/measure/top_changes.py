"""How search results change when queries' vectors move and documents' vectors do not."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from optbench.machine.frozen import Frozen
from optbench.measure.ranking import rank_corpus

__all__ = ["TopChanges", "compare_tops", "top_results"]

Vectors = NDArray[np.float32]
TOP = 10


class TopChanges(Frozen):
    """How many texts have other nearest documents.

    Attributes:
        other_documents: texts with other documents among the ten nearest.
        other_order: texts with the same ten documents in another order.
    """

    other_documents: int
    other_order: int


def top_results(vectors: Vectors, documents: Vectors) -> list[tuple[str, ...] | None]:
    """The nearest documents of each vector, best first; None for a vector that is NaN, infinite or zero.

    Args:
        vectors: (texts, dimension).
        documents: (documents, dimension), rows of length 1; a memory map is read block by block.
    """
    whole = np.asarray(np.isfinite(vectors).all(axis=1) & vectors.any(axis=1))
    # A broken row is ranked as zero and discarded, so that every pass multiplies matrices of the same shape and rounds alike.
    ranked = rank_corpus(
        np.where(whole[:, np.newaxis], vectors, np.float32(0)), documents, [str(row) for row in range(len(documents))], TOP
    )
    return [top if good else None for top, good in zip(ranked, whole.tolist(), strict=True)]


def compare_tops(before: Sequence[tuple[str, ...] | None], after: Sequence[tuple[str, ...] | None]) -> TopChanges:
    """Count the texts with other documents or another order; a broken vector counts as other documents."""
    others = orders = 0
    for old, new in zip(before, after, strict=True):
        if old is None or new is None or set(old) != set(new):
            others += 1
        elif old != new:
            orders += 1
    return TopChanges(other_documents=others, other_order=orders)
