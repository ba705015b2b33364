"""What all figures share: one meaning for each color, labels that do not overlap, and intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import altair as alt

__all__ = [
    "BASELINE",
    "FLOOR",
    "FONT_SIZE",
    "LABEL_GAP",
    "MET",
    "RESULT",
    "STEP",
    "TARGET",
    "Axis",
    "Row",
    "chart_of",
    "end_labels",
    "order",
    "padded",
    "role_color",
    "spread",
    "text_px",
]

Row = dict[str, Any]

# One color, one meaning, on every figure; after Okabe and Ito, for color-blind readers. Each has a contrast of at least 3 to the page's
# cards, light and dark (WCAG 2.2, 1.4.11). Text is never colored: no color has a contrast of 4.5 to both.
RESULT = "#0b84d8"
"""The recipe's result."""
STEP = "#7a8fb0"
"""A step on the way to it."""
BASELINE = "#808890"
"""fp32, and whatever a result is compared with."""
TARGET = "#c8480f"
"""A target or a limit, always dashed."""
MET = "#1a9a75"
"""Where every target is met."""
FLOOR = "#a97f00"
"""The machine's own limit."""

FONT_SIZE = 11
# Pixels between the middles of two lines of text, and the width of a character.
LABEL_GAP = 14
CHARACTER_PX = 6.4


def order(rows: Sequence[Row], field: str) -> list[str]:
    """The values of a field in their order of appearance."""
    return list(dict.fromkeys(row[field] for row in rows))


def text_px(texts: Sequence[str]) -> int:
    """The width of the longest text, in pixels."""
    return math.ceil(CHARACTER_PX * max(map(len, texts), default=0))


def padded(values: Sequence[float], share: float, *, log: bool = False) -> tuple[float, float]:
    """The range of values, extended by a share of itself at both ends; `log` on a logarithmic axis."""
    low, high = min(values), max(values)
    if log:
        low, high = math.log(low), math.log(high)
    extra = share * (high - low) or share * abs(high) or share
    low, high = low - extra, high + extra
    return (math.exp(low), math.exp(high)) if log else (low, high)


@dataclass(frozen=True)
class Axis:
    """A vertical axis whose pixels are known: labels can be placed before anything is drawn.

    Attributes:
        low: value at the pixel `bottom`, which is the larger one.
        high: value at the pixel `top`.
    """

    low: float
    high: float
    bottom: float
    top: float
    log: bool = False

    def px(self, value: float) -> float:
        """The pixel of a value."""
        low, high, at = (math.log(each) if self.log else each for each in (self.low, self.high, value))
        return self.bottom + (self.top - self.bottom) * (at - low) / (high - low)

    def scale(self) -> "alt.Scale":
        """The same as Vega-Lite's."""
        import altair as alt

        pixels, domain = [self.bottom, self.top], [self.low, self.high]
        if self.log:
            return alt.Scale(type="log", domain=domain, range=pixels, nice=False)
        return alt.Scale(domain=domain, range=pixels, nice=False, zero=False)


def spread(positions: Sequence[float], low: float, high: float, gap: float = LABEL_GAP) -> list[float]:
    """The positions, moved apart so that each is at least `gap` from the next, in the same order, within low and high.

    If there is no room for all, they are spaced evenly.
    """
    gap = min(gap, (high - low) / max(1, len(positions) - 1))
    ranked = sorted(range(len(positions)), key=lambda index: positions[index])
    # Blocks of touching labels: the wished first position of each, and its members. A block stands where its members' mean wish is.
    blocks: list[tuple[float, int]] = []
    for index in ranked:
        first, size = positions[index], 1
        while blocks and first < blocks[-1][0] + gap * blocks[-1][1]:
            before, members = blocks.pop()
            first = (before * members + (first - gap * members) * size) / (members + size)
            size += members
        blocks.append((first, size))
    placed = [first + gap * offset for first, size in blocks for offset in range(size)]
    for step, index in enumerate(range(len(placed))):
        placed[index] = max(placed[index], low + gap * step)
    for step, index in enumerate(reversed(range(len(placed)))):
        placed[index] = min(placed[index], high - gap * step)
    moved = [0.0] * len(positions)
    for index, position in zip(ranked, placed, strict=True):
        moved[index] = position
    return moved


def chart_of(rows: Sequence[Row]) -> "alt.Chart":
    """A chart of rows of data."""
    import altair as alt

    return alt.Chart(alt.Data(values=list(rows)))


def role_color(field: str = "role") -> "alt.Color":
    """The color of a row's role: `result`, `step`, `fp32` or `floor`."""
    import altair as alt

    scale = alt.Scale(domain=["result", "step", "fp32", "floor"], range=[RESULT, STEP, BASELINE, FLOOR])
    return alt.Color(f"{field}:N", scale=scale, legend=None)


def end_labels(rows: Sequence[Row], x: "alt.X", *, offset: int = 9, near: float = 1.5 * LABEL_GAP) -> "list[alt.Chart]":
    """Text beside points or the ends of lines, and a line up or down to each that stands farther away than `near`.

    Args:
        rows: each has the field of `x`, `label`, `from_px` (the point's pixel), `label_px` (the text's) and `align` (`left` to stand on the
            point's right).
        x: the horizontal channel of the chart that they belong to.
        offset: pixels between the point and its text.
        near: pixels.
    """
    import altair as alt

    layers = []
    for align, side in (("left", 1), ("right", -1)):
        here = [row for row in rows if row["align"] == align]
        if not here:
            continue
        moved = [row for row in here if abs(row["from_px"] - row["label_px"]) > near]
        if moved:
            leaders = chart_of(moved).mark_rule(strokeWidth=1, opacity=0.5, color="currentColor")
            layers.append(leaders.encode(x=x, y=alt.Y("from_px:Q", scale=None), y2="label_px:Q"))
        text = alt.Chart(alt.Data(values=here)).mark_text(
            align=align, dx=side * offset, baseline="middle", fontSize=FONT_SIZE, color="currentColor"
        )
        layers.append(text.encode(x=x, y=alt.Y("label_px:Q", scale=None), text="label:N"))
    return layers
