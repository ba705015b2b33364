"""Figures of a record: Vega-Lite charts by Altair, for the page and as SVG or PNG.

A record's text appears only in data, never in field names or expressions, so that untrusted text is not evaluated.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optbench.measure.accuracy import accuracy_change
from optbench.record.record import Record
from optbench.record.verdict import fastest_baseline
from optbench.report.headline import headline_of
from optbench.report.table import latency_interval, reading_length

if TYPE_CHECKING:
    import altair as alt

__all__ = [
    "Row",
    "accuracy_plot",
    "headline_plot",
    "latency_plot",
    "pareto_front",
    "peers_plot",
    "plane_plot",
    "tradeoff_plot",
    "waterfall_plot",
]

Row = dict[str, Any]
# After Okabe and Ito, for color-blind readers, each of medium lightness, for light and dark backgrounds.
COLORS = ["#2f7fd0", "#d9662b", "#1a9a75", "#b9649a", "#b58900", "#1f9bb0", "#808890"]
BAR, FINAL, TARGET = "#7a94b8", "#0b84d8", "#c2410c"
STEP_HEIGHT = 30
# The axis extends beyond the longest bar, to fit its label even on a phone.
ROOM = 1.35


def _order(rows: Sequence[Row], field: str) -> list[str]:
    return list(dict.fromkeys(row[field] for row in rows))


def _room_for_text(values: Sequence[float], factor: float) -> "alt.Scale":
    """From 0 to beyond the longest bar, to fit its label."""
    import altair as alt

    return alt.Scale(domain=[0, factor * max(values)], nice=False)


def step_rows(record: Record) -> list[Row]:
    """One row per timed step: milliseconds at the reading length with their 95 % interval."""
    length = reading_length(record)
    rows = []
    for point in record.points:
        if point.timing is not None:
            interval = latency_interval(record.timing(point.timing), length)
            shown = {
                "step": point.label,
                "ms": interval.point,
                "low": interval.low,
                "high": interval.high,
                "text": f"{interval.point:.3g} ms",
            }
            rows.append(
                {**shown, "final": point is record.final, "mb": round(point.size_bytes / 1e6), "engine": str(point.engine["engine"])}
            )
    return rows


def waterfall_plot(record: Record) -> "alt.LayerChart | None":
    """Milliseconds after each step, and those of the fastest fp32 engine."""
    import altair as alt

    rows = step_rows(record)
    if not rows or not record.baselines:
        return None
    length = reading_length(record)
    fastest = fastest_baseline(record, length)
    baseline = latency_interval(record.timing(fastest), length).point
    y = alt.Y("step:N", sort=_order(rows, "step"), title=None)
    base = alt.Chart(alt.Data(values=rows)).encode(y=y)
    tooltip = [alt.Tooltip(f"{name}:N") for name in ("step", "engine", "text", "mb")]
    color = alt.when(alt.datum.final).then(alt.value(FINAL)).otherwise(alt.value(BAR))
    bars = base.mark_bar(cornerRadiusEnd=3).encode(
        x=alt.X("ms:Q", title=f"ms at {length} tokens", scale=_room_for_text([row["high"] for row in rows], ROOM)),
        color=color,
        tooltip=tooltip,
    )
    spread = base.mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q", color=alt.value("currentColor"))
    text = base.mark_text(align="left", dx=8, color="currentColor").encode(x="high:Q", text="text:N")
    line = [{"ms": baseline, "label": f"{fastest}: {baseline:.3g} ms"}]
    rule = alt.Chart(alt.Data(values=line)).mark_rule(strokeDash=[5, 4], strokeWidth=2, color=TARGET).encode(x="ms:Q", tooltip="label:N")
    return alt.layer(bars, spread, text, rule).properties(width="container", height=STEP_HEIGHT * len(rows))


def change_rows(record: Record) -> list[Row]:
    """One row per step and task: the relative change of the metric in %, with its paired 95 % interval."""
    rows = []
    for base in record.points[0].accuracy:
        for point in record.points[1:]:
            result = next((result for result in point.accuracy if result.task == base.task), None)
            if result is not None:
                change = accuracy_change(base, result)
                percent = {"change": 100 * change.point, "low": 100 * change.low, "high": 100 * change.high}
                text = f"{percent['change']:+.2f} % ({percent['low']:+.2f}..{percent['high']:+.2f})"
                task = f"{base.main_metric} {base.task}" + (" (synthetic)" if base.synthetic else "")
                rows.append({"step": point.label, "task": task, "text": text, **percent})
    return rows


def accuracy_plot(record: Record) -> "alt.LayerChart | None":
    """The change of each task's metric after each step, against the loss that the recipe allows; None without accuracy."""
    import altair as alt

    rows = change_rows(record)
    if not rows:
        return None
    tasks = _order(rows, "task")
    limit = -100 * record.recipe.targets.accuracy_loss_max
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("step:N", sort=_order(rows, "step"), title=None),
        yOffset=alt.YOffset("task:N", sort=tasks),
        color=_color("task", tasks),
        tooltip=[alt.Tooltip(f"{name}:N") for name in ("step", "task", "text")],
    )
    axis = alt.X("low:Q", title="relative change, %", scale=alt.Scale(zero=True))
    spread = base.mark_rule(strokeWidth=2).encode(x=axis, x2="high:Q")
    points = base.mark_point(filled=True, size=70, opacity=1).encode(
        x="change:Q", shape=alt.Shape("task:N", sort=tasks, title=None, scale=alt.Scale(domain=tasks), legend=_legend())
    )
    lines = [{"change": 0.0, "label": "fp32"}, {"change": limit, "label": f"allowed loss: {limit:.3g} %"}]
    rules = alt.Chart(alt.Data(values=lines)).mark_rule(strokeDash=[5, 4], strokeWidth=1.5)
    rules = rules.encode(
        x="change:Q", color=alt.when(alt.datum.change < 0).then(alt.value(TARGET)).otherwise(alt.value("currentColor")), tooltip="label:N"
    )
    height = max(STEP_HEIGHT, 14 * len(tasks)) * len(_order(rows, "step"))
    return alt.layer(rules, spread, points).properties(width="container", height=height)


def _color(field: str, values: Sequence[str]) -> "alt.Color":
    """The same colors in the same order in every layer of a chart."""
    import altair as alt

    return alt.Color(f"{field}:N", sort=list(values), title=None, scale=alt.Scale(domain=list(values), range=COLORS), legend=_legend())


def _legend() -> "alt.Legend":
    import altair as alt

    return alt.Legend(orient="bottom", direction="vertical", labelLimit=260)


def tradeoff_plot(record: Record) -> "alt.VConcatChart | alt.LayerChart | None":
    """One figure for a README: the latency after each step above its accuracy."""
    import altair as alt

    bought, cost = waterfall_plot(record), accuracy_plot(record)
    if bought is None or cost is None:
        return bought or cost
    return alt.vconcat(bought, cost).resolve_scale(color="independent", shape="independent")


def pareto_front(rows: Sequence[Row]) -> list[Row]:
    """The Pareto front of `ms` (less is better) and `change` (more is better), fastest first."""
    front: list[Row] = []
    for row in sorted(rows, key=lambda row: (row["ms"], -row["change"])):
        if not front or row["change"] > front[-1]["change"]:
            front.append(row)
    return front


def plane_rows(record: Record) -> list[Row]:
    """One row per step: its milliseconds and the change of the task that lost most, with both intervals."""
    speed = {row["step"]: row for row in step_rows(record)}
    worst: dict[str, Row] = {}
    for row in change_rows(record):
        if row["step"] not in worst or row["change"] < worst[row["step"]]["change"]:
            worst[row["step"]] = row
    rows = []
    for label, timed in speed.items():
        change = worst.get(label)
        if change is None and label != record.points[0].label:
            continue
        found = change or {"change": 0.0, "low": 0.0, "high": 0.0, "task": "the reference", "text": "0 %"}
        ms = {"ms": timed["ms"], "ms_low": timed["low"], "ms_high": timed["high"]}
        loss = {key: found[key] for key in ("change", "low", "high", "task")}
        rows.append({"step": label, **ms, **loss, "text": f"{timed['text']}, {found['text']}"})
    return rows


def plane_plot(record: Record) -> "alt.LayerChart | None":
    """Accuracy over latency with the targets and the Pareto front; None without accuracy or latency."""
    import altair as alt

    rows = plane_rows(record)
    if len(rows) < 2 or not record.baselines:
        return None
    length, targets = reading_length(record), record.recipe.targets
    target_ms = latency_interval(record.timing(fastest_baseline(record, length)), length).point / targets.speedup
    limit = -100 * targets.accuracy_loss_max
    steps = _order(rows, "step")
    x = alt.X("ms:Q", title=f"ms at {length} tokens (left is faster)", scale=alt.Scale(type="log", nice=False, padding=24))
    y = alt.Y("change:Q", title="change of the task that lost most, %")
    base = alt.Chart(alt.Data(values=rows)).encode(
        color=_color("step", steps), tooltip=[alt.Tooltip(f"{name}:N") for name in ("step", "task", "text")]
    )
    front = alt.Chart(alt.Data(values=pareto_front(rows))).mark_line(
        color="currentColor", strokeWidth=1.5, opacity=0.6, interpolate="step-before"
    )
    target = alt.Chart(alt.Data(values=[{"ms": target_ms, "change": limit, "label": f"target: {target_ms:.3g} ms, {limit:.3g} %"}]))
    rule = {"strokeDash": [5, 4], "strokeWidth": 1.5, "color": TARGET}
    return alt.layer(
        front.encode(x=x, y=y),
        target.mark_rule(**rule).encode(x="ms:Q", tooltip="label:N"),
        target.mark_rule(**rule).encode(y="change:Q", tooltip="label:N"),
        base.mark_rule(strokeWidth=2).encode(x="ms_low:Q", x2="ms_high:Q", y="change:Q"),
        base.mark_rule(strokeWidth=2).encode(x="ms:Q", y="low:Q", y2="high:Q"),
        base.mark_point(filled=True, size=90, opacity=1).encode(
            x="ms:Q", y="change:Q", shape=alt.Shape("step:N", sort=steps, title=None, scale=alt.Scale(domain=steps), legend=_legend())
        ),
    ).properties(width="container", height=300)


def latency_rows(record: Record, floor: Mapping[int, float]) -> list[Row]:
    """One row per model and length, and of the floor if known."""
    rows = []
    for timing in record.timings:
        for length in sorted(record.recipe.workload.lengths):
            found = latency_interval(timing, length)
            text = f"{found.point:.3g} ms ({found.low:.3g}..{found.high:.3g})"
            rows.append({"model": timing.label, "tokens": length, "ms": found.point, "low": found.low, "high": found.high, "text": text})
    for tokens, ms in sorted(floor.items()):
        rows.append({"model": "floor, int8", "tokens": tokens, "ms": ms, "low": ms, "high": ms, "text": f"{ms:.3g} ms"})
    return rows


def latency_plot(record: Record, floor: Mapping[int, float]) -> "alt.LayerChart | None":
    """Milliseconds by token length of every engine and step, with 95 % intervals, over the machine's floor; both axes logarithmic."""
    import altair as alt

    rows = latency_rows(record, floor)
    if not rows:
        return None
    models, lengths = _order(rows, "model"), sorted({row["tokens"] for row in rows})
    x = alt.X("tokens:Q", title="tokens", scale=alt.Scale(type="log", nice=False, padding=12), axis=alt.Axis(values=lengths, grid=False))
    y = alt.Y("ms:Q", title="ms", scale=alt.Scale(type="log", nice=False, padding=8))
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=x,
        color=_color("model", models),
        tooltip=[alt.Tooltip(f"{name}:N") for name in ("model", "tokens", "text")],
    )
    lines = base.mark_line(strokeWidth=2).encode(
        y=y, strokeDash=alt.StrokeDash("model:N", sort=models, title=None, scale=alt.Scale(domain=models), legend=_legend())
    )
    points = base.mark_point(filled=True, size=45, opacity=1).encode(y=y)
    spread = base.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q"), y2="high:Q")
    return alt.layer(lines, spread, points).properties(width="container", height=300)


def headline_plot(records: Sequence[Record]) -> "alt.LayerChart | None":
    """Each recipe's speed-up over the fastest fp32 engine, with its 95 % interval; None if nothing was timed."""
    found = [headline for headline in map(headline_of, records) if headline is not None]
    rows = [
        {
            "model": f"{each.model} ({each.verdict}{', random weights' if each.weights == 'random' else ''})",
            "x": each.speedup.point,
            "low": each.speedup.low,
            "high": each.speedup.high,
            "text": f"{each.speedup.point:.2f}x",
            "more": f"{each.fp32_ms.point:.3g} to {each.optimized_ms.point:.3g} ms at {each.tokens} tokens",
        }
        for each in found
    ]
    return _speedups(rows, "speed-up, x") if rows else None


def peers_plot(rows: Sequence[Row]) -> "alt.LayerChart | None":
    """Each peer's speed-up over the first, with its interval; rows from `peers.speedup_rows`."""
    return _speedups(rows, "speed-up, x") if rows else None


def _speedups(rows: Sequence[Row], title: str) -> "alt.LayerChart":
    import altair as alt

    base = alt.Chart(alt.Data(values=list(rows))).encode(y=alt.Y("model:N", sort=_order(rows, "model"), title=None))
    bars = base.mark_bar(cornerRadiusEnd=3, color=FINAL).encode(
        x=alt.X("x:Q", title=title, scale=_room_for_text([row["high"] for row in rows], ROOM)),
        tooltip=[alt.Tooltip("model:N"), alt.Tooltip("text:N"), alt.Tooltip("more:N")],
    )
    spread = base.mark_rule(strokeWidth=2, color="currentColor").encode(x="low:Q", x2="high:Q")
    text = base.mark_text(align="left", dx=8, color="currentColor").encode(x="high:Q", text="text:N")
    one = alt.Chart(alt.Data(values=[{"x": 1.0}])).mark_rule(strokeDash=[5, 4], strokeWidth=1.5, color=TARGET).encode(x="x:Q")
    return alt.layer(bars, spread, text, one).properties(width="container", height=STEP_HEIGHT * len(rows))
