"""Figures without a browser: labels that do not overlap, targets, single queries, load."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optbench.engines.openvino import OpenVino
from optbench.measure.footprint import MemorySample
from optbench.measure.load.report import Concurrency, ConcurrencyResult, ScenarioReport
from optbench.measure.load.scenarios import HighestRate, RateTrial
from optbench.record.record import Record
from optbench.record.verdict import judge
from optbench.report import plots
from optbench.report.plots.plane import plane_rows
from optbench.report.plots.recipes import recipe_rows
from optbench.report.plots.steps import decisive_change, target_ms
from optbench.report.plots.style import Axis, spread


@given(st.lists(st.floats(min_value=-50, max_value=350), max_size=12))
def test_labels_stand_apart_in_their_order_and_within_the_figure(positions: list[float]) -> None:
    placed = spread(positions, 7, 273)
    assert all(7 - 1e-6 <= each <= 273 + 1e-6 for each in placed)
    ranked = [placed[index] for index in sorted(range(len(positions)), key=lambda index: positions[index])]
    assert all(later - earlier >= 14 - 1e-6 for earlier, later in pairwise(ranked))


def test_labels_with_room_stay_where_they_are_and_crowded_ones_move_evenly() -> None:
    assert spread([100, 20], 0, 200) == [100, 20]
    assert spread([100, 100], 0, 200, gap=10) == [95, 105]
    assert spread([0.0] * 5, 0, 20) == [0, 5, 10, 15, 20]


def test_axis_gives_the_pixel_of_a_value() -> None:
    assert Axis(0, 10, bottom=100, top=20).px(5) == pytest.approx(60)
    assert Axis(1, 100, bottom=100, top=0, log=True).px(10) == pytest.approx(50)


def data_of(chart: Any) -> list[dict[str, Any]]:
    """Every row of every layer's data."""
    spec = chart.to_dict()
    named = spec.get("datasets", {})
    data = [part["data"] for part in (spec, *spec["layer"]) if "data" in part]
    return [row for each in data for row in (named[each["name"]] if "name" in each else each["values"])]


def test_plane_has_the_ratio_where_the_milliseconds_are_of_another_machine(make_steps_record: Callable[..., Record]) -> None:
    record = make_steps_record()
    # 90 ms by the fastest fp32 engine, and a target of 90 / 40.
    assert target_ms(record) == pytest.approx(40, rel=0.01)
    labels = [row.get("label", "") for row in data_of(plots.plane_plot(record))]
    assert any(label.startswith(("target 40.", "target 39.")) for label in labels)
    assert "allowed -1.0 %" in labels
    assert {point.label for point in record.points} <= set(labels)


def test_plane_shows_the_change_that_the_verdict_is_about(make_steps_record: Callable[..., Record]) -> None:
    record = make_steps_record()
    decisive = next(finding for finding in judge(record).findings if finding.decides and finding.unit == "relative change")
    assert decisive.about == "weighted mean of 2 tasks"
    found = decisive_change(record, record.final)
    assert found is not None
    assert found["change"] == pytest.approx(100 * decisive.value)
    assert plane_rows(record)[-1]["change"] == found["change"]


def test_random_weights_have_a_plane_without_accuracy(make_steps_record: Callable[..., Record]) -> None:
    chart = plots.plane_plot(make_steps_record(weights="random"), small=True)
    assert chart is not None
    assert not any("allowed" in row.get("label", "") or "%" in row.get("text", "") for row in data_of(chart))


def test_recipes_share_a_plane_and_random_weights_stand_below_it(make_steps_record: Callable[..., Record]) -> None:
    records = [make_steps_record(), make_steps_record(weights="random")]
    real, random = recipe_rows(records)
    assert (real["label"], random["label"]) == ("Model ", "gte-large")
    assert (real["judged"], random["judged"]) == (True, False)
    assert real["target"] == 2.25
    assert "change" not in random
    chart = plots.recipes_plot(records)
    assert chart is not None
    below = [row["px"] for row in data_of(chart) if row.get("judged") is False]
    above = [row["px"] for row in data_of(chart) if row.get("judged")]
    assert min(below) > max(above)
    assert plots.recipes_plot(records[:1]) is None


def test_histogram_holds_every_query_that_changed(make_record: Callable[..., Record]) -> None:
    before = {f"q{index}": 0.5 for index in range(20)}
    after = before | {"q0": 0.2, "q1": 0.45, "q2": 0.9, "q3": 0.6}
    record = make_record(accuracy=(before, after))
    found = plots.query_changes(record)
    assert found is not None
    assert found.summary == "nDCG@10 on judged: 2 queries worse, 2 better, 16 unchanged (not drawn)."
    bins = [row for row in data_of(plots.query_plot(record)) if "count" in row]
    assert sum(row["count"] for row in bins) == 4
    for change in found.changes:
        assert [row for row in bins if row["low"] - 1e-9 <= change <= row["high"] + 1e-9 and row["count"]]
    assert plots.query_plot(make_record(accuracy=(before, before))) is None
    assert plots.query_plot(make_record(weights="random")) is None


def scenarios() -> ScenarioReport:
    memory = MemorySample(rss_bytes=1, anonymous_bytes=1, file_bytes=0, peak_rss_bytes=1)
    trials = (RateTrial(rate=40, n=400, p99_ms=30, held=True), RateTrial(rate=80, n=800, p99_ms=200, held=False))
    highest = HighestRate(limit_ms=100, rate=40, failed_rate=80, converged=False, run=None, probes=trials)
    engine = OpenVino(engine="openvino")
    models = [
        ConcurrencyResult(
            concurrency=Concurrency(name=name, sessions=1, engine=engine),
            load_ms=1,
            memory=memory,
            single_stream={},
            highest=highest,
            server=None,
            offline=(),
        )
        for name in ("one_session", "many_sessions")
    ]
    return ScenarioReport(
        artifact_sha256="f" * 64,
        engine={"engine": "openvino"},
        tokens=(8, 9),
        seconds=10,
        limit_ms=100,
        limit_given=False,
        models=tuple(models),
        serves_more=None,
        notes=(),
    )


def test_load_has_every_rate_tried_and_the_limit(make_record: Callable[..., Record]) -> None:
    assert plots.load_plot(make_record()) is None
    rows = data_of(plots.load_plot(make_record(scenarios=scenarios())))
    assert {(row["model"], row["rate"], row["held"]) for row in rows if "held" in row} == {
        (model, rate, held) for model in ("one session", "many sessions") for rate, held in ((40, True), (80, False))
    }
    assert {"limit 100 ms", "one session", "many sessions"} <= {row.get("label") for row in rows}
