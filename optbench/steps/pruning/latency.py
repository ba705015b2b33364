"""What a layer costs in milliseconds: measured on whole small bodies in the real engine, read back for any size."""

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from optbench.checkpoint import Body

__all__ = ["LayerTimes", "fit_layer_times", "probe_bodies"]

# Layers of a probe body: the weights of six layers of 1024 are 75 MB in int8, past the last-level cache, like those of a whole body.
PROBE_LAYERS = 6
# Shares of a part's full width that are timed; between them times are linear to within noise.
SHARES = (0.5, 0.25)
# A probe's tables are as short as they may be: an input reads a few rows of them.
PROBE_VOCABULARY = 4096
PROBE_POSITIONS = 514


class LayerTimes(BaseModel):
    """Milliseconds of one body's parts on one machine, in one engine and precision, by token length.

    Attributes:
        fixed: outside the layers: embedding, pooling, the engine's own overhead.
        attention: by heads, ascending: one layer's attention with its norm.
        feed_forward: by width, ascending: one layer's feed-forward part with its norm.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    """The bodies to time: two of the full shape that differ in depth, then one for each smaller attention and feed-forward part."""
    layers = min(PROBE_LAYERS, max(2, body.layers))
    small = {
        "layers": layers,
        "vocabulary": min(PROBE_VOCABULARY, body.vocabulary),
        "positions": min(PROBE_POSITIONS, body.positions),
        "layer_heads": None,
        "layer_feed_forward": None,
        "position_bias_heads": None,
    }
    full = body.model_copy(update=small)
    bodies = [full, full.model_copy(update={"layers": layers // 2})]
    for heads in _sizes(body.heads):
        columns = (tuple(range(heads)),) * layers if body.architecture == "MPNetModel" else None
        bodies.append(full.model_copy(update={"layer_heads": (heads,) * layers, "position_bias_heads": columns}))
    bodies += [full.model_copy(update={"feed_forward": width}) for width in _sizes(body.feed_forward)]
    return bodies


def _sizes(full: int) -> list[int]:
    return sorted({max(1, round(full * share)) for share in SHARES}, reverse=True)


def fit_layer_times(bodies: Sequence[Body], times: Sequence[Mapping[int, float]]) -> LayerTimes:
    """The parts' times from the probes' times.

    What a layer would still take without any heads and neurons is counted half to each part: only sums are ever asked for.

    Args:
        bodies: of `probe_bodies`.
        times: milliseconds by length, in the same order.
    """
    full, shallow = bodies[0], bodies[1]
    lengths = sorted(times[0])
    layer = {n: (times[0][n] - times[1][n]) / (full.layers - shallow.layers) for n in lengths}
    # What one layer saves at each smaller size, and by extension at none.
    heads_saved, width_saved = {full.heads: dict.fromkeys(lengths, 0.0)}, {full.feed_forward: dict.fromkeys(lengths, 0.0)}
    for body, own in zip(bodies[2:], times[2:], strict=True):
        saved = {n: (times[0][n] - own[n]) / full.layers for n in lengths}
        if body.layer_heads is not None:
            heads_saved[body.layer_heads[0]] = saved
        else:
            width_saved[body.feed_forward] = saved
    for part in (heads_saved, width_saved):
        part[0] = {n: _at_zero(part, n) for n in lengths}
    bare = {n: layer[n] - heads_saved[0][n] - width_saved[0][n] for n in lengths}
    return LayerTimes(
        fixed={n: max(0.0, times[0][n] - full.layers * layer[n]) for n in lengths},
        attention={size: {n: bare[n] / 2 + heads_saved[0][n] - saved[n] for n in lengths} for size, saved in heads_saved.items()},
        feed_forward={size: {n: bare[n] / 2 + width_saved[0][n] - saved[n] for n in lengths} for size, saved in width_saved.items()},
    )


def _at_zero(saved: Mapping[int, Mapping[int, float]], length: int) -> float:
    """On the line through the two smallest sizes: what lies below the smallest that was timed goes on as it went."""
    small, larger = sorted(saved)[:2]
    return saved[small][length] + small * (saved[small][length] - saved[larger][length]) / (larger - small)
