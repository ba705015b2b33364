"""Which inputs of a linear layer to remove, in order, so that its output changes least: optimal brain surgeon on groups.

    min  E[(g' (W - V) x)^2]  over V whose columns S are zero,  =  tr(U_S (H^-1_SS)^-1 U_S'),   U = A W,  A'A = E[g g'],  H = E[x x']

g is the gradient of the embedding at the layer's output, so that the errors of all layers have the same unit: the squared distance
by which the unit embedding moves. The remaining columns compensate for the removed ones as far as their inputs are correlated.

Source: Hassibi and Stork 1992, "Second order derivatives for network pruning"; on groups, Kurtic et al. 2023, arXiv:2302.04089.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from optbench.errors import StepError
from optbench.steps.pruning.rounding import Rounding

if TYPE_CHECKING:
    import torch

__all__ = ["LinearLayer", "RemovalCurve", "order_removals"]

# A block of neurons is chosen from so many times as many candidates: of two redundant ones, both look cheap until one is removed.
POOL_FACTOR = 4


@dataclass(frozen=True)
class LinearLayer:
    """A linear layer, and what the calibration texts say about it.

    Attributes:
        weight: (out, in).
        moments: E[x x'], (in, in), tokens weighted.
        sensitivity: E[g g'], (out, out).
        rounding: the int8 rounding error of each input, which is gone once the input is removed: errors may then be negative.
    """

    weight: "torch.Tensor"
    moments: "torch.Tensor"
    sensitivity: "torch.Tensor"
    rounding: Rounding | None = None


@dataclass(frozen=True)
class RemovalCurve:
    """The order in which a layer's units are removed, `step` at a time.

    Attributes:
        order: the units' numbers, the first to be removed first; units that are never removed are not listed.
        errors: after 0, 1, 2... steps.
    """

    order: tuple[int, ...]
    errors: tuple[float, ...]
    step: int

    def kept(self, steps: int, units: int) -> list[int]:
        """The units that remain after so many steps, ascending."""
        gone = set(self.order[: steps * self.step])
        return [unit for unit in range(units) if unit not in gone]


def order_removals(layer: LinearLayer, *, unit: int, step: int, damping: float, where: str) -> RemovalCurve:
    """Remove units greedily, `step` at a time, until one step's worth is left.

    A unit is `unit` neighboring inputs: 1 for a neuron, the head size for a head. `damping` is the share of the mean diagonal that is
    added to the moments; moments that still cannot be factored are a StepError.
    """
    import torch

    weight, rounding = layer.weight, layer.rounding
    inverse = _inverse(layer.moments, damping, where)
    values, vectors = torch.linalg.eigh(layer.sensitivity.double())
    factor = (vectors * values.clamp(min=0).sqrt()).T
    scaled = (factor @ weight.double()).float()
    nothing = torch.zeros(weight.shape[1])
    saved = torch.stack((nothing, nothing) if rounding is None else (rounding.by_weight, rounding.fixed))
    # The remaining units are kept in front, so that a step works in place on one corner of each matrix.
    places = torch.arange(weight.shape[1] // unit)
    left = len(places)
    order: list[int] = []
    errors = [0.0]
    while left > step:
        live = left * unit
        chosen, error = _cheapest(inverse[:live, :live], scaled[:, :live], saved[:, :live], unit, step)
        order += places[chosen].tolist()
        errors.append(errors[-1] + error)
        _move_last(inverse, (scaled, saved), places, chosen, left, unit)
        _remove_last(inverse[:live, :live], scaled[:, :live], step * unit)
        left -= step
    return RemovalCurve(tuple(order), tuple(errors), step)


def _inverse(moments: "torch.Tensor", damping: float, where: str) -> "torch.Tensor":
    import torch

    damped = moments.double()
    mean = float(damped.diagonal().mean())
    damped = damped + torch.eye(len(damped), dtype=torch.float64) * (damping * mean if mean > 0 else 1.0)
    factor, failed = torch.linalg.cholesky_ex(damped)
    if failed or not factor.sum().isfinite():
        raise StepError(
            f"{where}: the second moments of {len(moments)} inputs cannot be factored; give more calibration texts, or raise damping"
        )
    # The factor's condition number is the root of the moments': from here on float32 is enough, and three times as fast.
    return torch.cholesky_inverse(factor.float()).contiguous()


def _cheapest(inverse: "torch.Tensor", scaled: "torch.Tensor", saved: "torch.Tensor", unit: int, step: int) -> "tuple[torch.Tensor, float]":
    """The next `step` units, chosen one by one, and the error that removing them adds."""
    import torch

    count = len(inverse) // unit
    if unit > 1:
        costs = [_group_cost(inverse, scaled, saved, slice(i * unit, (i + 1) * unit)) for i in range(count)]
        best = sorted(range(count), key=costs.__getitem__)[:step]
        return torch.tensor(best), sum(costs[i] for i in best)
    norms = scaled.square().sum(0)
    pool = (norms / inverse.diagonal() - saved[0] * norms - saved[1]).argsort(stable=True)[: POOL_FACTOR * step]
    by_weight, fixed = saved[:, pool].double().numpy()
    small, gram = inverse[pool][:, pool].double().numpy(), (scaled[:, pool].T @ scaled[:, pool]).double().numpy()
    variances, squares = small.diagonal().copy(), gram.diagonal().copy()
    # Only the columns of removed inputs are updated in both matrices, as in a pivoted Cholesky factorization.
    columns, shares, rows = (np.zeros((step, len(pool))) for _ in range(3))
    chosen: list[int] = []
    error = 0.0
    for turn in range(min(step, len(pool))):
        costs_of = squares / variances - by_weight * squares - fixed
        costs_of[chosen] = np.inf
        first = int(costs_of.argmin())
        error += float(costs_of[first])
        # The remaining inputs compensate for the removed one: u_i becomes u_i - u_first H^-1_first,i / H^-1_first,first.
        column = small[first] - columns[:turn, first] @ columns[:turn]
        share = column / column[first]
        product = gram[first] - shares[:turn, first] @ rows[:turn] - rows[:turn, first] @ shares[:turn]
        row = product - 0.5 * product[first] * share
        columns[turn], shares[turn], rows[turn] = column / column[first] ** 0.5, share, row
        variances -= column * share
        squares -= 2 * share * row
        variances[first] = 1.0
        chosen.append(first)
    return pool[chosen], error


def _group_cost(inverse: "torch.Tensor", scaled: "torch.Tensor", saved: "torch.Tensor", group: slice) -> float:
    import torch

    columns, (by_weight, fixed) = scaled[:, group].double(), saved[:, group].double()
    lost = (columns * torch.linalg.solve(inverse[group, group].double(), columns.T).T).sum()
    return float(lost - (by_weight * columns.square().sum(0) + fixed).sum())


def _move_last(
    inverse: "torch.Tensor",
    by_input: "tuple[torch.Tensor, ...]",
    places: "torch.Tensor",
    chosen: "torch.Tensor",
    left: int,
    unit: int,
) -> None:
    """Swap the chosen units with the last of the `left` remaining ones."""
    import torch

    gone = set(chosen.tolist())
    first = torch.tensor([place for place in sorted(gone) if place < left - len(gone)], dtype=torch.long)
    last = torch.tensor([place for place in range(left - len(gone), left) if place not in gone], dtype=torch.long)
    here, there = torch.cat([first, last]), torch.cat([last, first])
    places[here] = places[there]
    here, there = ((each[:, None] * unit + torch.arange(unit)).flatten() for each in (here, there))
    inverse[here] = inverse[there]
    for matrix in (inverse[: left * unit], *by_input):
        matrix[:, here] = matrix[:, there]


def _remove_last(inverse: "torch.Tensor", scaled: "torch.Tensor", count: int) -> None:
    """Update the inverse moments and the weights of the remaining inputs, in place, for the removal of the last `count` ones."""
    import torch

    stay = len(inverse) - count
    share = torch.linalg.solve(inverse[stay:, stay:], inverse[stay:, :stay])
    for matrix in (inverse[:stay], scaled):
        matrix[:, :stay].addmm_(matrix[:, stay:], share, alpha=-1)
