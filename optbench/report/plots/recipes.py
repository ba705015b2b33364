"""The results of several recipes: accuracy over speed-up with each one's targets, and speed-ups as bars."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from optbench.record.record import Record
from optbench.record.verdict import judged_in_ms
from optbench.report.headline import Headline, headline_of
from optbench.report.plots.steps import decisive_change, limit_of
from optbench.report.plots.style import (
    BASELINE,
    FONT_SIZE,
    LABEL_GAP,
    RESULT,
    STEP,
    TARGET,
    Axis,
    Row,
    chart_of,
    end_labels,
    order,
    padded,
    spread,
)

if TYPE_CHECKING:
    import altair as alt

__all__ = ["headline_plot", "peers_plot", "recipes_plot"]

PLANE_PX, GAP_PX = 240, 14
# A recipe without accuracy gets a line of its own below the plane.
LINE_PX = 22
ABOVE_PX = 10
# The axis extends beyond the longest bar, to fit its label even on a phone.
ROOM = 1.35
OWN = "optbench"


def _target_speedup(record: Record, found: Headline) -> float:
    targets = record.recipe.targets
    if judged_in_ms(record) and targets.latency_ms is not None:
        return found.fp32_ms.point / targets.latency_ms
    return targets.speedup


def recipe_rows(records: Sequence[Record]) -> list[Row]:
    """One row per record that was timed: its speed-up and change of accuracy with intervals, and its targets."""
    rows = []
    for record in records:
        found = headline_of(record)
        if found is None:
            continue
        speed = {"x": found.speedup.point, "x_low": found.speedup.low, "x_high": found.speedup.high}
        change = decisive_change(record, record.final)
        text = f"{found.speedup.point:.2f}x, target {found.target}"
        if change is not None:
            text += f"; {change['change']:+.1f} % {change['about']}"
        row = {"label": found.model, "verdict": found.outcome, "target": _target_speedup(record, found), "text": text, **speed}
        rows.append({**row, **(change or {}), "limit": limit_of(record), "judged": change is not None})
    return rows


def recipes_plot(records: Sequence[Record]) -> "alt.LayerChart | None":
    """The result of each recipe: its change of accuracy over its speed-up, and its targets; None for fewer than two.

    Recipes without accuracy stand below the plane, each in a line of its own.
    """
    import altair as alt

    rows = recipe_rows(records)
    if len(rows) < 2:
        return None
    judged, others = [row for row in rows if row["judged"]], [row for row in rows if not row["judged"]]
    plane_px = PLANE_PX if judged else 0
    height = plane_px + (GAP_PX + LINE_PX * len(others) if others else 0)
    changes = [0.0, *(row[key] for row in judged for key in ("low", "high", "limit"))]
    axis = Axis(*padded(changes, 0.08), bottom=plane_px, top=0)
    domain = padded([1.0, *(row[key] for row in rows for key in ("x_low", "x_high", "target"))], 0.06)
    for row in judged:
        row.update(px=axis.px(row["change"]), low_px=axis.px(row["low"]), high_px=axis.px(row["high"]))
    for line, row in enumerate(others):
        row.update(dict.fromkeys(("px", "low_px", "high_px"), plane_px + GAP_PX + LINE_PX * (line + 0.5)))
    labels = [*spread([row["px"] - ABOVE_PX for row in judged], 8, plane_px), *(row["px"] - ABOVE_PX for row in others)]
    for row, label_px in zip([*judged, *others], labels, strict=True):
        row.update(from_px=row["px"], label_px=label_px, align="left" if row["x"] < sum(domain) / 2 else "right")
    x = alt.X(
        "x:Q",
        title="speed-up over the fastest fp32 engine, x",
        scale=alt.Scale(domain=list(domain), nice=False, zero=False),
        axis=alt.Axis(grid=False),
    )
    y = alt.Y("px:Q", scale=None)
    base = chart_of(rows).encode(tooltip=[alt.Tooltip(f"{name}:N") for name in ("label", "verdict", "text")])
    return alt.layer(
        *_limits(judged, axis),
        chart_of([{"x": 1.0}]).mark_rule(strokeDash=[5, 4], strokeWidth=2, color=BASELINE).encode(x=x),
        base.mark_rule(strokeDash=[3, 3], strokeWidth=1.5, color=TARGET).encode(x="target:Q", x2="x:Q", y=y),
        base.mark_tick(orient="vertical", thickness=3, size=16, color=TARGET).encode(x="target:Q", y=y),
        base.mark_rule(strokeWidth=2, color=RESULT).encode(x="x_low:Q", x2="x_high:Q", y=y),
        base.mark_rule(strokeWidth=2, color=RESULT).encode(x=x, y=alt.Y("low_px:Q", scale=None), y2="high_px:Q"),
        base.mark_point(filled=True, size=80, opacity=1, color=RESULT).encode(x=x, y=y),
        *end_labels(rows, x),
    ).properties(width="container", height=height)


def _limits(judged: Sequence[Mapping[str, float]], axis: Axis) -> "list[alt.Chart]":
    """The accuracy axis, and a line for each limit of the recipes."""
    import altair as alt

    if not judged:
        return []
    y = alt.Y("change:Q", title="change of accuracy, %", scale=axis.scale())
    rows: list[Row] = [{"change": limit, "label": f"allowed {limit:.1f} %"} for limit in sorted({row["limit"] for row in judged})]
    named = [{**row, "px": axis.px(row["change"]) - LABEL_GAP / 2} for row in rows]
    text = chart_of(named).mark_text(align="left", dx=4, baseline="middle", fontSize=FONT_SIZE, color="currentColor")
    return [
        chart_of(rows).mark_rule(strokeDash=[5, 4], strokeWidth=2, color=TARGET).encode(y=y, tooltip="label:N"),
        text.encode(x=alt.value(0), y=alt.Y("px:Q", scale=None), text="label:N"),
    ]


def headline_plot(records: Sequence[Record]) -> "alt.LayerChart | None":
    """Each recipe's speed-up over the fastest fp32 engine with its 95 % interval, and its target; None if nothing was timed."""
    rows = []
    for record in records:
        each = headline_of(record)
        if each is not None:
            speed = {"x": each.speedup.point, "low": each.speedup.low, "high": each.speedup.high, "text": f"{each.speedup.point:.2f}x"}
            more = f"{each.fp32_ms.point:.2f} to {each.optimized_ms.point:.2f} ms at {each.tokens} tokens"
            rows.append(
                {"model": f"{each.model}: {each.outcome}", **speed, "more": more, "own": True, "target": _target_speedup(record, each)}
            )
    return _speedups(rows) if rows else None


def peers_plot(rows: Sequence[Row]) -> "alt.LayerChart | None":
    """Each peer's speed-up over the first, with its interval; rows from `peers.speedup_rows`."""
    return _speedups([{**row, "own": row["model"].partition(" ")[0] == OWN} for row in rows]) if rows else None


def _speedups(rows: Sequence[Row]) -> "alt.LayerChart":
    import altair as alt

    base = chart_of(rows).encode(y=alt.Y("model:N", sort=order(rows, "model"), title=None))
    x = alt.X("x:Q", title="speed-up, x", scale=alt.Scale(domain=[0, ROOM * max(row["high"] for row in rows)], nice=False))
    bars = base.mark_bar(cornerRadiusEnd=3, size=20).encode(
        x=x,
        color=alt.when(alt.datum.own).then(alt.value(RESULT)).otherwise(alt.value(STEP)),
        tooltip=[alt.Tooltip("model:N"), alt.Tooltip("text:N"), alt.Tooltip("more:N")],
    )
    spread_rule = base.mark_rule(strokeWidth=2, color="currentColor").encode(x="low:Q", x2="high:Q")
    text = base.mark_text(align="left", dx=8, fontSize=FONT_SIZE, color="currentColor").encode(x="high:Q", text="text:N")
    one = chart_of([{"x": 1.0}]).mark_rule(strokeDash=[5, 4], strokeWidth=2, color=BASELINE).encode(x="x:Q")
    layers = [bars, spread_rule, text, one]
    if "target" in rows[0]:
        layers.append(base.mark_tick(orient="vertical", thickness=3, size=26, color=TARGET).encode(x="target:Q"))
    return alt.layer(*layers).properties(width="container", height=30 * len(rows))
