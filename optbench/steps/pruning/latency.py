"""What a layer costs in milliseconds: measured on whole small bodies in the real engine, read back for any size."""

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field

from optbench.machine.frozen import Frozen
from optbench.model.checkpoint import Body

__all__ = ["FIT_VERSION", "LayerTimes", "fit_layer_times", "probe_bodies"]

FIT_VERSION = 4
"""Of `fit_layer_times`: tables of another are measured again."""

# Layers of a probe body: the weights of six layers of 1024 are 75 MB in int8, past the last-level cache of most CPUs.
PROBE_LAYERS = 6
# Shares of a part's full width that are timed. gte-large in int8: straight lines through them are within 4 % of every probe.
SHARES = (0.5, 0.25)
# A probe's tables are as short as they may be: an input reads a few rows of them.
PROBE_VOCABULARY = 4096
PROBE_POSITIONS = 514


class LayerTimes(Frozen):
    """Milliseconds of one body's parts on one machine, in one engine and precision, by token length.

    Attributes:
        fixed: outside the layers: embedding, pooling, the engine's own overhead.
        attention: by heads, ascending: one layer's attention with its norm.
        feed_forward: by width, ascending: one layer's feed-forward part with its norm.
    """

    fixed: dict[int, float] = Field(min_length=1)
    attention: dict[int, dict[int, float]] = Field(min_length=2)
    feed_forward: dict[int, dict[int, float]] = Field(min_length=2)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Token lengths that were timed."""
        return tuple(sorted(self.fixed))

    def attention_ms(self, heads: int, length: int) -> float:
        """One layer's attention with so many heads."""
        return _between(self.attention, heads, length)

    def feed_forward_ms(self, width: int, length: int) -> float:
        """One layer's feed-forward part of a width."""
        return _between(self.feed_forward, width, length)

    def body_ms(self, sizes: Sequence[tuple[int, int]], length: int) -> float:
        """A body of layers with these heads and widths."""
        return self.fixed[length] + sum(self.attention_ms(heads, length) + self.feed_forward_ms(width, length) for heads, width in sizes)


def _between(times: Mapping[int, Mapping[int, float]], size: int, length: int) -> float:
    sizes = sorted(times)
    return float(np.interp(size, sizes, [times[each][length] for each in sizes]))


def probe_bodies(body: Body) -> list[Body]:
    """The bodies to time: two of the full shape that differ in depth, then one for each smaller attention and feed-forward part.

    Where the body has more layers than a probe, it comes last with short tables, after itself at half its heads and widths: see
    `fit_layer_times`.
    """
    layers = min(PROBE_LAYERS, max(2, body.layers))
    tables = {"vocabulary": min(PROBE_VOCABULARY, body.vocabulary), "positions": min(PROBE_POSITIONS, body.positions)}
    even = {"layers": layers, "layer_heads": None, "layer_feed_forward": None, "position_bias_heads": None}
    full = body.model_copy(update={**tables, **even})
    bodies = [full, full.model_copy(update={"layers": layers // 2})]
    bodies += [_with_heads(full, heads) for heads in _sizes(body.heads)]
    bodies += [full.model_copy(update={"feed_forward": width}) for width in _sizes(body.feed_forward)]
    if body.layers > layers:
        whole = body.model_copy(update=tables)
        narrow = whole.model_copy(update={"feed_forward": _sizes(body.feed_forward)[0], "layer_feed_forward": None})
        bodies += [_with_heads(narrow, _sizes(body.heads)[0]), whole]
    return bodies


def _with_heads(body: Body, heads: int) -> Body:
    columns = (tuple(range(heads)),) * body.layers if body.architecture == "MPNetModel" else None
    return body.model_copy(update={"layer_heads": (heads,) * body.layers, "position_bias_heads": columns})


def _sizes(full: int) -> list[int]:
    return sorted({max(1, round(full * share)) for share in SHARES}, reverse=True)


def fit_layer_times(bodies: Sequence[Body], times: Sequence[Mapping[int, float]]) -> LayerTimes:
    """The parts' times from the probes' times: a constant, and per layer another, a share for the heads and one for the width.

    Least squares of the relative errors over all probes, none of the four below 0: differences of two probes would multiply the
    noise of either by the layers of the whole body. What a layer takes without heads and neurons is counted half to each part:
    only sums are ever asked for.

    A deep body takes longer than its layers: 24 of gte-large took up to 12 % longer than six foresaw, more or less so when pruned. So
    where two of full depth come last, what the sizes do not change is multiplied by one factor and what they do by another, so that both
    bodies take their own times.

    Args:
        bodies: of `probe_bodies`.
        times: milliseconds by length, in the same order.
    """
    from scipy.optimize import nnls

    full = bodies[0]
    design = np.array([_parts(body, full) for body in bodies])
    probes = [index for index, body in enumerate(bodies) if body.layers <= full.layers]
    fixed: dict[int, float] = {}
    attention: dict[int, dict[int, float]] = {0: {}, full.heads: {}}
    feed_forward: dict[int, dict[int, float]] = {0: {}, full.feed_forward: {}}
    for length in sorted(times[0]):
        measured = np.array([own[length] for own in times])
        parts, _ = nnls((design / measured[:, None])[probes], np.ones(len(probes)))
        if len(probes) < len(bodies):
            # Columns: a layer whatever its sizes, with the constant, and its heads and neurons.
            deep = np.add.reduceat(design[-2:] * parts, [0, 2], axis=1)
            factors, _ = nnls(deep / measured[-2:, None], np.ones(2))
            parts *= np.repeat(factors, 2)
        fixed[length], layer, heads, width = map(float, parts)
        for part, whole in ((attention, heads), (feed_forward, width)):
            for size in part:
                part[size][length] = layer / 2 + (whole if size else 0.0)
    return LayerTimes(fixed=fixed, attention=attention, feed_forward=feed_forward)


def _parts(body: Body, full: Body) -> tuple[float, float, float, float]:
    """How often a body pays for itself, a layer, all the heads of a full layer, and a full width."""
    heads, widths = zip(*body.sizes, strict=True)
    return 1, body.layers, sum(heads) / full.heads, sum(widths) / full.feed_forward
