"""Accuracy over latency: the steps of one recipe against its targets."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from optbench.record.record import Record
from optbench.record.verdict import fastest_baseline
from optbench.report.decimals import fixed
from optbench.report.plots.steps import decisive_change, limit_of, step_rows, target_ms
from optbench.report.plots.style import (
    BASELINE,
    FONT_SIZE,
    LABEL_GAP,
    MET,
    TARGET,
    Axis,
    Row,
    chart_of,
    end_labels,
    padded,
    role_color,
    spread,
)
from optbench.report.table import latency_interval, reading_length

if TYPE_CHECKING:
    import altair as alt

__all__ = ["pareto_front", "plane_plot", "plane_rows"]

HEIGHT, SMALL_HEIGHT = 280, 150
# Two lines of text above the plane, which name the vertical lines.
HEAD_PX = 2 * LABEL_GAP + 8
ABOVE_PX = 10


def pareto_front(rows: Sequence[Row]) -> list[Row]:
    """The Pareto front of `ms` (less is better) and `change` (more is better), fastest first."""
    front: list[Row] = []
    for row in sorted(rows, key=lambda row: (row["ms"], -row["change"])):
        if not front or row["change"] > front[-1]["change"]:
            front.append(row)
    return front


def plane_rows(record: Record) -> list[Row]:
    """One row per step: its milliseconds and the change of accuracy that the verdict is about, both with intervals.

    With random weights no change is known: `change` and its ends are 0.
    """
    rows = []
    points = {point.label: point for point in record.points}
    for timed in step_rows(record):
        point = points[timed["step"]]
        found = decisive_change(record, point)
        if found is None and record.weights == "real" and point is not record.points[0]:
            continue
        if found is None or point is record.points[0]:
            found = {"change": 0.0, "low": 0.0, "high": 0.0, "about": "the reference"}
        ms = {"ms": timed["ms"], "ms_low": timed["low"], "ms_high": timed["high"]}
        text = f"{timed['text']}, {found['change']:+.1f} %" if record.weights == "real" else timed["text"]
        rows.append({"step": timed["step"], "role": timed["role"], **ms, **found, "text": text})
    return rows


def plane_plot(record: Record, *, small: bool = False) -> "alt.LayerChart | None":
    """Each step's accuracy over its latency, with the targets; None without latency, or without accuracy if there should be one.

    With random weights there is no accuracy, and all steps stand in one line. `small` names the result only.
    """
    rows = plane_rows(record)
    return _Plane(record, rows, small).chart() if len(rows) > 1 and record.baselines else None


class _Plane:
    """The layers of one recipe's plane."""

    def __init__(self, record: Record, rows: Sequence[Row], small: bool) -> None:
        import altair as alt

        self._rows, self._small, self._judged = rows, small, record.weights == "real"
        self._limit = limit_of(record)
        self._height = SMALL_HEIGHT if small else HEIGHT
        length = reading_length(record)
        self._fastest = fastest_baseline(record, length)
        self._baseline = latency_interval(record.timing(self._fastest), length).point
        self._target = target_ms(record)
        every_ms = [self._target, self._baseline, *(row[key] for row in rows for key in ("ms_low", "ms_high"))]
        self._ms = padded(every_ms, 0.08, log=True)
        changes = [self._limit, 0.0, *(row[key] for row in rows for key in ("low", "high"))] if self._judged else [-1.0, 1.0]
        self._axis = Axis(*padded(changes, 0.08), bottom=self._height, top=HEAD_PX)
        scale = alt.Scale(type="log", domain=list(self._ms), nice=False)
        self._x = alt.X("ms:Q", title=f"ms at {length} tokens", scale=scale, axis=alt.Axis(grid=False))
        title = "change of accuracy, %" if self._judged else None
        self._y = alt.Y("change:Q", title=title, scale=self._axis.scale(), axis=alt.Axis() if self._judged else None)

    def chart(self) -> "alt.LayerChart":
        """The corner where both targets are met, the target lines, the points, their names."""
        import altair as alt

        layers = [self._corner(), *self._lines(), *self._points(), *self._names()]
        return alt.layer(*layers).properties(width="container", height=self._height)

    def _corner(self) -> "alt.Chart":
        corner = {
            "ms": self._ms[0],
            "to_ms": self._target,
            "change": self._limit if self._judged else self._axis.low,
            "to": self._axis.high,
        }
        return chart_of([corner]).mark_rect(color=MET, opacity=0.15).encode(x=self._x, x2="to_ms:Q", y=self._y, y2="to:Q")

    def _lines(self) -> "list[alt.Chart]":
        shown = fixed([self._baseline, self._target])
        layers = []
        for ms, name, color, line in (
            (self._target, f"target {shown[1]} ms", TARGET, 0),
            (self._baseline, f"{'fp32' if self._small else self._fastest} {shown[0]} ms", BASELINE, 1),
        ):
            px = LABEL_GAP * (line + 0.5)
            row = {"ms": ms, "label": name, "align": self._align(ms), "from_px": px, "label_px": px}
            layers.append(_dashed([row], color).encode(x=self._x, tooltip="label:N"))
            layers += end_labels([row], self._x, offset=5)
        if self._judged:
            layers.append(_dashed([{"change": self._limit}], TARGET).encode(y=self._y))
        return layers

    def _points(self) -> "list[alt.Chart]":
        import altair as alt

        base = chart_of(self._rows).encode(color=role_color(), tooltip=[alt.Tooltip(f"{name}:N") for name in ("step", "about", "text")])
        layers = [base.mark_rule(strokeWidth=2).encode(x="ms_low:Q", x2="ms_high:Q", y=self._y)]
        if self._judged:
            layers.append(base.mark_rule(strokeWidth=2).encode(x=self._x, y="low:Q", y2="high:Q"))
        return [*layers, base.mark_point(filled=True, size=50 if self._small else 80, opacity=1).encode(x=self._x, y=self._y)]

    def _names(self) -> "list[alt.Chart]":
        """The names of the points, and of the limit if there is one, none over another."""
        import altair as alt

        named = [row for row in self._rows if row["role"] == "result" or not self._small]
        own_px = [self._axis.px(row["change"]) for row in named]
        # Above its point, so that the interval does not run through it.
        wished = [px - ABOVE_PX for px in own_px]
        limit = [self._axis.px(self._limit) - LABEL_GAP / 2] if self._judged else []
        placed = spread([*wished, *limit], HEAD_PX + LABEL_GAP / 2, self._height - LABEL_GAP / 2)
        labels = [
            {
                "ms": row["ms"],
                "label": row["text"] if self._small else row["step"],
                "align": self._align(row["ms"]),
                "from_px": px,
                "label_px": label_px,
            }
            for row, px, label_px in zip(named, own_px, placed, strict=False)
        ]
        layers = end_labels(labels, self._x)
        if self._judged:
            text = chart_of([{"label": f"allowed {self._limit:.1f} %", "px": placed[-1]}])
            text = text.mark_text(align="right", baseline="middle", fontSize=FONT_SIZE, color="currentColor")
            layers.append(text.encode(x=alt.value("width"), y=alt.Y("px:Q", scale=None), text="label:N"))
        return layers

    def _align(self, ms: float) -> str:
        """Text stands on the side with more room."""
        low, high = self._ms
        return "left" if ms * ms < low * high else "right"


def _dashed(rows: Sequence[Row], color: str) -> "alt.Chart":
    return chart_of(rows).mark_rule(strokeDash=[5, 4], strokeWidth=2, color=color)
