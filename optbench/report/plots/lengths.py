"""Latency by token length, every line named at its end."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optbench.record.record import Record
from optbench.report.decimals import fixed
from optbench.report.plots.style import LABEL_GAP, Axis, Row, chart_of, end_labels, order, padded, role_color, spread, text_px
from optbench.report.table import latency_interval

if TYPE_CHECKING:
    import altair as alt

__all__ = ["latency_plot", "latency_rows"]

HEIGHT = 280
LEFT_PX, LABEL_PX = 10, 14
DASHES = ([6, 4], [2, 3], [8, 3, 2, 3])


def latency_rows(record: Record, floor: Mapping[int, float]) -> list[Row]:
    """One row per model and length, and of the floor if known."""
    lengths = sorted(record.recipe.workload.lengths)
    rows = []
    for timing in record.timings:
        role = "fp32" if timing.label in record.baselines else "result" if timing.label == record.final.timing else "step"
        for length in lengths:
            found = latency_interval(timing, length)
            point, low, high = fixed([found.point, found.low, found.high])
            figures = {"ms": found.point, "low": found.low, "high": found.high}
            rows.append({"model": timing.label, "role": role, "tokens": length, **figures, "text": f"{point} ms ({low}..{high})"})
    for tokens, ms in sorted(floor.items()):
        (text,) = fixed([ms])
        rows.append({"model": "floor, int8", "role": "floor", "tokens": tokens, "ms": ms, "low": ms, "high": ms, "text": f"{text} ms"})
    return rows


def latency_plot(record: Record, floor: Mapping[int, float]) -> "alt.LayerChart | None":
    """Milliseconds by token length of every engine and step, with 95 % intervals, over the machine's floor; both axes logarithmic."""
    import altair as alt

    rows = latency_rows(record, floor)
    if not rows:
        return None
    models, lengths = order(rows, "model"), sorted({row["tokens"] for row in rows})
    axis = Axis(*padded([row[key] for row in rows for key in ("low", "high")], 0.03, log=True), bottom=HEIGHT, top=0, log=True)
    # The names stand to the right of the last length.
    pixels: list[Any] = [LEFT_PX, {"expr": f"width - {text_px(models) + LABEL_PX + 4}"}]
    scale = alt.Scale(type="log", domain=[lengths[0], lengths[-1]], range=pixels, nice=False)
    x = alt.X("tokens:Q", title="tokens", scale=scale, axis=alt.Axis(values=lengths, grid=False))
    y = alt.Y("ms:Q", title="ms", scale=axis.scale())
    base = chart_of(rows).encode(x=x, color=role_color(), tooltip=[alt.Tooltip(f"{name}:N") for name in ("model", "tokens", "text")])
    # fp32 engines have one color: their lines differ in dashes.
    solid = {row["model"] for row in rows if row["role"] != "fp32"}
    dashes = dict(zip([model for model in models if model not in solid], DASHES, strict=False))
    dash_scale = alt.Scale(domain=models, range=[dashes.get(model, [1, 0]) for model in models])
    dash = alt.StrokeDash("model:N", sort=models, scale=dash_scale, legend=None)
    ends = [max((row for row in rows if row["model"] == model), key=lambda row: row["tokens"]) for model in models]
    from_px = [axis.px(row["ms"]) for row in ends]
    labels = [
        {"tokens": row["tokens"], "label": row["model"], "align": "left", "from_px": px, "label_px": label_px}
        for row, px, label_px in zip(ends, from_px, spread(from_px, LABEL_GAP / 2, HEIGHT - LABEL_GAP / 2), strict=True)
    ]
    return alt.layer(
        base.mark_line(strokeWidth=2).encode(y=y, strokeDash=dash),
        base.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q", scale=axis.scale()), y2="high:Q"),
        base.mark_point(filled=True, size=45, opacity=1).encode(y=y),
        *end_labels(labels, x, offset=LABEL_PX, near=HEIGHT),
    ).properties(width="container", height=HEIGHT)
