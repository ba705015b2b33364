"""Figures that are read together have the same number of decimals: `79.1`, `26.0`, not `79.1`, `26`."""

import math
from collections.abc import Iterable, Sequence

__all__ = ["decimals_for", "fixed"]

DECIMALS_MAX = 6


def decimals_for(values: Iterable[float]) -> int:
    """The decimals that give the smallest value other than 0 three significant digits, or two if it is below 1."""
    smallest = min((abs(value) for value in values if value and math.isfinite(value)), default=1.0)
    exponent = math.floor(math.log10(smallest))
    return min(DECIMALS_MAX, max(0, (2 if exponent >= 0 else 1) - exponent))


def fixed(values: Sequence[float]) -> list[str]:
    """The values as text, all with the same decimals."""
    decimals = decimals_for(values)
    return [f"{value:.{decimals}f}" for value in values]
