"""What a layer costs in milliseconds: measured on small whole bodies in the real engine, interpolated for any size."""

from collections.abc import Mapping, Sequence

from pydantic import Field

from optbench.machine.frozen import Frozen
from optbench.model.body import Body

__all__ = ["FIT_VERSION", "LayerTimes", "fit_layer_times", "probe_bodies"]

FIT_VERSION = 4
"""Of `fit_layer_times`; latencies cached with another version are measured again."""

# Layers of a probe body: the weights of six layers of 1024 are 75 MB in int8, larger than the last-level cache of most CPUs.
PROBE_LAYERS = 6
# Shares of a part's full width to time. gte-large in int8: straight lines through them are within 4 % of every probe.
SHARES = (0.5, 0.25)
# A probe's tables are as short as possible: an input reads only a few rows.
PROBE_VOCABULARY = 4096
PROBE_POSITIONS = 514


class LayerTimes(Frozen):
    """Latency of one body's parts in ms by token length, on one machine, in one engine and precision.

    Attributes:
        fixed: time outside the layers: embedding, pooling, the engine's overhead.
        attention: one layer's attention with its norm, by heads, ascending.
        feed_forward: one layer's feed-forward part with its norm, by width, ascending.
    """

    fixed: dict[int, float] = Field(min_length=1)
    attention: dict[int, dict[int, float]] = Field(min_length=2)
    feed_forward: dict[int, dict[int, float]] = Field(min_length=2)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Token lengths that were timed."""
        return tuple(sorted(self.fixed))

    def attention_ms(self, heads: int, length: int) -> float:
        """One layer's attention with this number of heads."""
        return _between(self.attention, heads, length)

    def feed_forward_ms(self, width: int, length: int) -> float:
        """One layer's feed-forward part of this width."""
        return _between(self.feed_forward, width, length)

    def body_ms(self, sizes: Sequence[tuple[int, int]], length: int) -> float:
        """A body of layers with these heads and widths."""
        return self.fixed[length] + sum(self.attention_ms(heads, length) + self.feed_forward_ms(width, length) for heads, width in sizes)


def _between(times: Mapping[int, Mapping[int, float]], size: int, length: int) -> float:
    import numpy as np

    sizes = sorted(times)
    return float(np.interp(size, sizes, [times[each][length] for each in sizes]))


def probe_bodies(body: Body) -> list[Body]:
    """The bodies to time: two of the full shape that differ in depth, then one for each smaller attention and feed-forward part.

    Where the body has more layers than a probe, two of full depth with short tables come last: at half its heads and widths, and
    whole; see `fit_layer_times`.
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
    """The latency of a body's parts, fitted to the measured latencies of `probe_bodies`, in ms by length.

    It is a constant, and per layer a constant, a term for heads and a term for width. The four coefficients are a non-negative
    least-squares fit to all probes, with relative errors: differences of two probes would multiply their noise by the number of layers.
    A layer's constant is split evenly between its two parts, since only sums are used.

    A deep body takes longer than the sum of its layers: 24 layers of gte-large took up to 12 % longer than predicted from six. So
    where two bodies of full depth come last, one factor on the terms that do not depend on the sizes and one on those that do are
    chosen so that both bodies get their measured times.
    """
    import numpy as np
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
            # Columns: the constants, and what depends on heads and widths.
            deep = np.add.reduceat(design[-2:] * parts, [0, 2], axis=1)
            factors, _ = nnls(deep / measured[-2:, None], np.ones(2))
            parts *= np.repeat(factors, 2)
        fixed[length], layer, heads, width = map(float, parts)
        for part, whole in ((attention, heads), (feed_forward, width)):
            for size in part:
                part[size][length] = layer / 2 + (whole if size else 0.0)
    return LayerTimes(fixed=fixed, attention=attention, feed_forward=feed_forward)


def _parts(body: Body, full: Body) -> tuple[float, float, float, float]:
    """A body's row of the design: itself, its layers, and its heads and widths in units of a full layer's."""
    heads, widths = zip(*body.sizes, strict=True)
    return 1, body.layers, sum(heads) / full.heads, sum(widths) / full.feed_forward
