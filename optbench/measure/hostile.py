"""Fidelity over hostile texts: what an artifact makes of inputs far from those that it was calibrated on."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from optbench.measure.encoding import Role
from optbench.measure.fidelity import Fidelity, measure_fidelity
from optbench.tasks.hostile import hostile_kinds, hostile_texts

__all__ = ["HostileFidelity"]

# Of a text in a message.
SHOWN_CHARACTERS = 60


class HostileFidelity:
    """Compares artifacts on the same hostile texts: the first that it is given is the base, the one before is the source."""

    def __init__(self, count: int) -> None:
        """Make `count` texts; with 0, nothing is compared."""
        self.texts = hostile_texts(count, "test")
        self._base: NDArray[np.float32] | None = None
        self._before: NDArray[np.float32] | None = None
        self._usable = np.arange(count)

    def compare(self, encode: Callable[[Sequence[str], Role], NDArray[np.float32]]) -> tuple[Fidelity, Fidelity] | None:
        """Embed the texts, every second one as a query, and compare with the artifact before and with the base.

        Texts that the base gives no vector for, such as one of which its tokenizer leaves nothing, are left out.

        Returns:
            Fidelity to the artifact before and to the base; None for the base itself, and without texts.
        """
        if not self.texts:
            return None
        queries, documents = encode(self.texts[::2], "query"), encode(self.texts[1::2], "document")
        vectors = np.empty((len(self.texts), queries.shape[1]), dtype=np.float32)
        vectors[::2], vectors[1::2] = queries, documents
        if self._base is None:
            self._usable = np.flatnonzero(np.isfinite(vectors).all(axis=1) & vectors.any(axis=1))
        vectors = vectors[self._usable]
        base, before = self._base, self._before
        self._base, self._before = vectors if base is None else base, vectors
        if base is None or before is None or not len(vectors):
            return None
        return measure_fidelity(before, vectors), measure_fidelity(base, vectors)

    def describe(self, index: int) -> str:
        """The text of that index in a `Fidelity` of these texts: its kind, and how it begins."""
        place = int(self._usable[index])
        kinds, text = list(hostile_kinds("test")), self.texts[place]
        shown = repr(text[:SHOWN_CHARACTERS]) + ("..." if len(text) > SHOWN_CHARACTERS else "")
        return f"{kinds[place % len(kinds)]}, {shown}"
