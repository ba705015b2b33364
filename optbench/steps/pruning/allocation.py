"""How many heads and neurons each layer keeps, so that the total error is least within a budget: an exact knapsack.

Errors of all layers have the same unit, so one budget is allocated among them all; costs may be any function of size, such as measured
milliseconds. Costs are rounded to a grid, and the rounding errors of tens of parts cancel to within 0.1 % of the budget.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["LayerOptions", "Part", "allocate"]

CELLS = 8000


@dataclass(frozen=True)
class Part:
    """The sizes that the attention or the feed-forward part of a layer may have, the full one first: their costs and errors."""

    costs: tuple[float, ...]
    errors: tuple[float, ...]


@dataclass(frozen=True)
class LayerOptions:
    """A layer's two parts, and the error of dropping the layer; infinite where it must be kept."""

    attention: Part
    feed_forward: Part
    drop_error: float = float("inf")


Choice = tuple[int, int] | None
"""The option chosen for each part; None for a dropped layer."""


def allocate(layers: Sequence[LayerOptions], budget: float) -> list[Choice] | None:
    """Choose the sizes with the least total error that cost at most `budget`; None where even the smallest cost more."""
    cell = budget / CELLS
    if cell <= 0:
        return None
    reach = np.full(CELLS + 1, np.inf)
    reach[0] = 0.0
    tables: list[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_]]] = []
    for layer in layers:
        between, first = _add_part(reach, layer.attention, cell)
        after, second = _add_part(between, layer.feed_forward, cell)
        dropped = reach + layer.drop_error
        is_dropped = dropped < after
        tables.append((first, second, is_dropped))
        reach = np.where(is_dropped, dropped, after)
    if not np.isfinite(reach).any():
        return None
    place = int(np.argmin(reach))
    choices: list[Choice] = []
    for layer, (first, second, is_dropped) in zip(reversed(layers), reversed(tables), strict=True):
        if is_dropped[place]:
            choices.append(None)
            continue
        option_second = int(second[place])
        place -= _cells(layer.feed_forward.costs[option_second], cell)
        option_first = int(first[place])
        place -= _cells(layer.attention.costs[option_first], cell)
        choices.append((option_first, option_second))
    return choices[::-1]


def _cells(cost: float, cell: float) -> int:
    # Nearest, not up: with tens of parts, rounding each one up would leave some of the budget unused.
    return round(cost / cell)


def _add_part(reach: NDArray[np.float64], part: Part, cell: float) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """The least error within each number of cells once a part is added, and the option that gives it."""
    best = np.full_like(reach, np.inf)
    option = np.zeros(len(reach), dtype=np.int32)
    for index, (cost, error) in enumerate(zip(part.costs, part.errors, strict=True)):
        shift = _cells(cost, cell)
        if shift >= len(reach):
            continue
        candidate = np.full_like(reach, np.inf)
        candidate[shift:] = reach[: len(reach) - shift] + error
        better = candidate < best
        best[better] = candidate[better]
        option[better] = index
    return best, option
