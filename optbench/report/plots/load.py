"""p99 against the load, where scenarios ran: every rate that the search tried."""

from typing import TYPE_CHECKING

from optbench.record.record import Record
from optbench.report.decimals import fixed
from optbench.report.plots.style import FONT_SIZE, LABEL_GAP, RESULT, TARGET, Axis, Row, chart_of, end_labels, padded, spread

if TYPE_CHECKING:
    import altair as alt

__all__ = ["load_plot", "load_rows"]

HEIGHT = 280


def load_rows(record: Record) -> list[Row]:
    """One row per run of the search for the highest rate: queries per second, p99 in ms, and whether it held the limit."""
    rows = []
    for model in record.scenarios.models if record.scenarios else ():
        probes = sorted(model.highest.probes, key=lambda probe: probe.rate)
        for probe, ms in zip(probes, fixed([probe.p99_ms for probe in probes]), strict=True):
            held = "held" if probe.held else "over the limit"
            text = f"{probe.rate:.1f} queries/s: p99 {ms} ms, {held}"
            name = model.concurrency.name.replace("_", " ")
            rows.append({"model": name, "rate": probe.rate, "ms": probe.p99_ms, "held": probe.held, "text": text})
    return rows


def load_plot(record: Record) -> "alt.LayerChart | None":
    """p99 by queries per second under each concurrency model, and the limit; None without scenarios."""
    import altair as alt

    rows = load_rows(record)
    if not rows or record.scenarios is None:
        return None
    limit = record.scenarios.limit_ms
    axis = Axis(*padded([limit, *(row["ms"] for row in rows)], 0.06, log=True), bottom=HEIGHT, top=0, log=True)
    high = 1.06 * max(row["rate"] for row in rows)
    x = alt.X("rate:Q", title="queries per second", scale=alt.Scale(domain=[0, high], nice=False))
    y = alt.Y("ms:Q", title="p99, ms", scale=axis.scale())
    ends = [
        max((row for row in rows if row["model"] == name), key=lambda row: row["rate"])
        for name in dict.fromkeys(row["model"] for row in rows)
    ]
    wished = [axis.px(row["ms"]) for row in ends]
    *placed, limit_px = spread([*wished, axis.px(limit) - LABEL_GAP / 2], LABEL_GAP / 2, HEIGHT - LABEL_GAP / 2)
    labels = [
        {"rate": row["rate"], "label": row["model"], "align": "right", "from_px": px, "label_px": label_px}
        for row, px, label_px in zip(ends, wished, placed, strict=True)
    ]
    base = chart_of(rows).encode(x=x, y=y, tooltip=[alt.Tooltip("model:N"), alt.Tooltip("text:N")])
    named = chart_of([{"label": f"limit {limit:.3g} ms", "px": limit_px}])
    named = named.mark_text(align="left", dx=4, baseline="middle", fontSize=FONT_SIZE, color="currentColor")
    points = base.mark_point(size=60, opacity=1, strokeWidth=2, color=RESULT)
    return alt.layer(
        chart_of([{"ms": limit}]).mark_rule(strokeDash=[5, 4], strokeWidth=2, color=TARGET).encode(y=y),
        base.mark_line(strokeWidth=2, color=RESULT).encode(strokeDash=alt.StrokeDash("model:N", legend=None)),
        points.encode(fill=alt.when(alt.datum.held).then(alt.value(RESULT)).otherwise(alt.value("transparent"))),
        named.encode(x=alt.value(0), y=alt.Y("px:Q", scale=None), text="label:N"),
        *end_labels(labels, x),
    ).properties(width="container", height=HEIGHT)
