"""What each step bought and cost: milliseconds and accuracy after each one."""

from typing import TYPE_CHECKING

from optbench.errors import MeasureError
from optbench.measure.accuracy import accuracy_change
from optbench.record.record import Point, Record
from optbench.record.verdict import accuracy_findings, fastest_baseline, judged_in_ms
from optbench.report.decimals import fixed
from optbench.report.plots.style import BASELINE, FONT_SIZE, TARGET, Row, order, padded, role_color
from optbench.report.table import latency_interval, reading_length

if TYPE_CHECKING:
    import altair as alt

__all__ = ["accuracy_plot", "change_rows", "decisive_change", "limit_of", "step_rows", "target_ms", "tradeoff_plot", "waterfall_plot"]

# The axis extends beyond the longest bar, to fit its label even on a phone.
ROOM = 1.45
# With more tasks, only the result is drawn.
TASKS_WITH_STEPS_MAX = 3


def _role(record: Record, point: Point) -> str:
    return "result" if point is record.final else "fp32" if point is record.points[0] else "step"


def step_rows(record: Record) -> list[Row]:
    """One row per timed step: milliseconds at the reading length with their 95 % interval."""
    length = reading_length(record)
    timed = [(point, latency_interval(record.timing(point.timing), length)) for point in record.points if point.timing is not None]
    shown = fixed([interval.point for _, interval in timed])
    return [
        {
            "step": point.label,
            "role": _role(record, point),
            "ms": interval.point,
            "low": interval.low,
            "high": interval.high,
            "text": f"{text} ms",
            "mb": round(point.size_bytes / 1e6),
            "engine": str(point.engine["engine"]),
        }
        for (point, interval), text in zip(timed, shown, strict=True)
    ]


def target_ms(record: Record) -> float:
    """The milliseconds at the reading length that the recipe requires on this machine: its own, or those that give the speed-up."""
    targets, length = record.recipe.targets, reading_length(record)
    if judged_in_ms(record) and targets.latency_ms is not None:
        return targets.latency_ms
    return latency_interval(record.timing(fastest_baseline(record, length)), length).point / targets.speedup


def limit_of(record: Record) -> float:
    """The change of accuracy that the recipe allows, in %: at most 0."""
    return -100 * record.recipe.targets.accuracy_loss_max


def waterfall_plot(record: Record, height: int | None = None) -> "alt.LayerChart | None":
    """Milliseconds after each step, those of the fastest fp32 engine, and the target; None without latency.

    `height` is in pixels; by default as much as the bars need.
    """
    import altair as alt

    rows = step_rows(record)
    if not rows or not record.baselines:
        return None
    length = reading_length(record)
    fastest = fastest_baseline(record, length)
    baseline, target = latency_interval(record.timing(fastest), length).point, target_ms(record)
    texts = fixed([row["ms"] for row in rows] + [baseline, target])[-2:]
    y = alt.Y("step:N", sort=order(rows, "step"), title=None)
    base = alt.Chart(alt.Data(values=rows)).encode(y=y)
    scale = alt.Scale(domain=[0, ROOM * max(row["high"] for row in rows)], nice=False)
    bars = base.mark_bar(cornerRadiusEnd=3, size=20).encode(
        x=alt.X("ms:Q", title=f"ms at {length} tokens", scale=scale),
        color=role_color(),
        tooltip=[alt.Tooltip(f"{name}:N") for name in ("step", "engine", "text", "mb")],
    )
    interval = base.mark_rule(strokeWidth=2, color="currentColor").encode(x="low:Q", x2="high:Q")
    text = base.mark_text(align="left", dx=8, fontSize=FONT_SIZE, color="currentColor").encode(x="high:Q", text="text:N")
    lines: list[Row] = [
        {"ms": baseline, "label": f"{fastest} {texts[0]} ms", "color": BASELINE},
        {"ms": target, "label": f"target {texts[1]} ms", "color": TARGET},
    ]
    layers = [bars, interval, text]
    for line in lines:
        rule = alt.Chart(alt.Data(values=[line]))
        layers.append(rule.mark_rule(strokeDash=[5, 4], strokeWidth=2, color=line["color"]).encode(x="ms:Q", tooltip="label:N"))
    return alt.layer(*layers).properties(width="container", height=height or 30 * len(rows))


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
                rows.append({"step": point.label, "role": _role(record, point), "task": task, "text": text, **percent})
    return rows


def decisive_change(record: Record, point: Point) -> Row | None:
    """The change of accuracy that the verdict is about, in %, of any step: of the task, or the mean over tasks, on the judged index.

    None with random weights, whose accuracy means nothing.
    """
    if record.weights == "random":
        return None
    try:
        findings = accuracy_findings(record.points[0].accuracy, point.accuracy, record.recipe.targets)
    except MeasureError:
        # A step's dimension differs from the base's: its queries cannot be searched in the base's index.
        return None
    found = next((finding for finding in findings if finding.decides), None)
    if found is None:
        return None
    return {"change": 100 * found.value, "low": 100 * found.low, "high": 100 * found.high, "about": found.about}


def accuracy_plot(record: Record, height: int | None = None) -> "alt.LayerChart | None":
    """The change of each task's metric after each step, against the loss that the recipe allows; None without accuracy.

    With more than three tasks, only the result's.
    """
    import altair as alt

    rows = change_rows(record)
    if not rows:
        return None
    tasks = order(rows, "task")
    many = len(tasks) > TASKS_WITH_STEPS_MAX
    rows = [row for row in rows if not many or row["role"] == "result"]
    names = ("task",) if many else ("step",) if len(tasks) == 1 else ("step", "task")
    rows = [{**row, "line": ", ".join(row[name] for name in names)} for row in rows]
    limit = limit_of(record)
    low, high = padded([limit, 0.0, *(row[key] for row in rows for key in ("low", "high"))], 0.06)
    x = alt.X("low:Q", title="relative change, %", scale=alt.Scale(domain=[low, high], nice=False, zero=False))
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("line:N", sort=order(rows, "line"), title=None),
        color=role_color(),
        tooltip=[alt.Tooltip(f"{name}:N") for name in ("step", "task", "text")],
    )
    interval = base.mark_rule(strokeWidth=2).encode(x=x, x2="high:Q")
    points = base.mark_point(filled=True, size=70, opacity=1).encode(x="change:Q")
    lines = [({"change": 0.0, "label": "fp32"}, BASELINE), ({"change": limit, "label": f"allowed: {limit:.1f} %"}, TARGET)]
    rules = [
        alt.Chart(alt.Data(values=[line])).mark_rule(strokeDash=[5, 4], strokeWidth=2, color=color).encode(x="change:Q", tooltip="label:N")
        for line, color in lines
    ]
    return alt.layer(*rules, interval, points).properties(width="container", height=height or 30 * len(order(rows, "line")))


def tradeoff_plot(record: Record) -> "alt.VConcatChart | alt.LayerChart | None":
    """One figure for a README: the latency after each step above its accuracy."""
    import altair as alt

    bought, cost = waterfall_plot(record), accuracy_plot(record)
    if bought is None or cost is None:
        return bought or cost
    return alt.vconcat(bought, cost).resolve_scale(color="independent")
