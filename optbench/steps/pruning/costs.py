"""What the parts of a body cost: multiply-adds, or the measured latency of its layers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from optbench.model.body import Body
from optbench.steps.pruning.latency import LayerTimes

__all__ = ["Costs", "flops_costs", "latency_costs"]


@dataclass(frozen=True)
class Costs:
    """What a body costs, in any unit that adds up over layers: a fixed part, and each layer's two parts by their size."""

    fixed: float
    attention: Callable[[int], float]
    feed_forward: Callable[[int], float]

    def total(self, sizes: Sequence[tuple[int, int]]) -> float:
        """The cost of a body of layers with these heads and widths."""
        return self.fixed + sum(self.attention(heads) + self.feed_forward(width) for heads, width in sizes)


def flops_costs(body: Body) -> Costs:
    """Multiply-adds per token in the weights of a layer's parts."""
    per_head, per_neuron = 4 * body.hidden * body.head_size, 2 * body.hidden
    return Costs(0.0, lambda heads: float(per_head * heads), lambda width: float(per_neuron * width))


def latency_costs(times: LayerTimes, units: Mapping[int, float]) -> Costs:
    """Milliseconds at each length divided by that length's unit, summed."""
    return Costs(
        sum(times.fixed[n] / unit for n, unit in units.items()),
        lambda heads: sum(times.attention_ms(heads, n) / unit for n, unit in units.items()),
        lambda width: sum(times.feed_forward_ms(width, n) / unit for n, unit in units.items()),
    )
