"""Both concurrency models over a real engine, and what the report makes of them."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from optbench.artifact.folder import Artifact
from optbench.artifact.manifest import Kind
from optbench.engines.onnxruntime import OnnxRuntime
from optbench.engines.openvino import OpenVino
from optbench.engines.torch import Torch
from optbench.errors import MeasureError
from optbench.measure.footprint import MemorySample
from optbench.measure.load.concurrency import REAL_QUERIES, concurrency_models, make_batches, run_scenarios
from optbench.measure.load.report import ConcurrencyResult, ScenarioReport, scenario_notes, serves_more
from optbench.measure.load.scenarios import HighestRate, Latencies, RateTrial, ServerRun, SingleStream
from optbench.measure.subject import Subject
from optbench.recipe.schema import Scenarios


def test_batches_hold_texts_of_like_length_longest_first() -> None:
    rows = [np.arange(1, length + 1) for length in (2, 5, 3)]
    (first_ids, first_mask), (last_ids, last_mask) = make_batches(rows, 2, pad_id=9)
    assert first_ids.tolist() == [[1, 2, 3, 4, 5], [1, 2, 3, 9, 9]]
    assert first_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert (last_ids.tolist(), last_mask.tolist()) == ([[1, 2]], [[1, 1]])


def result(name: str, rate: float, failed_rate: float | None, limit_ms: float = 5) -> ConcurrencyResult:
    run = ServerRun(rate=rate, served_per_second=rate, n_unserved=0, abandoned=False, latency=Latencies.of(np.arange(1, 101)))
    highest = HighestRate(
        limit_ms=limit_ms,
        rate=rate,
        failed_rate=failed_rate,
        converged=True,
        run=run if rate else None,
        probes=(RateTrial(rate=rate or 3, n=100, p99_ms=7, held=rate > 0),),
    )
    engine = OnnxRuntime(threads=2)
    one, many = concurrency_models(engine)
    return ConcurrencyResult(
        concurrency=one if name == "one_session" else many,
        load_ms=1,
        memory=MemorySample(rss_bytes=1, anonymous_bytes=1, file_bytes=0, peak_rss_bytes=1),
        single_stream={REAL_QUERIES: SingleStream(latency=run.latency)},
        highest=highest,
        server=None,
        offline=(),
    )


@pytest.mark.parametrize(
    ("one", "many", "more"),
    [
        ((100, 102), (150, 153), "many_sessions"),
        ((150, 153), (100, 102), "one_session"),
        ((100, 102), (104, 106), None),  # within the noise of two runs
        ((100, 130), (120, 122), None),  # the first search did not get far enough to exclude 120
        ((100, None), (150, 153), None),
        ((0, 10), (150, 153), "many_sessions"),
    ],
)
def test_model_serves_more_only_where_the_searches_tell_them_apart(
    one: tuple[float, float | None], many: tuple[float, float | None], more: str | None
) -> None:
    assert serves_more([result("one_session", *one), result("many_sessions", *many)]) == more


def test_many_sessions_split_the_threads_of_one() -> None:
    one, many = concurrency_models(OpenVino(threads=3))
    assert (one.sessions, one.engine.threads) == (1, 3)
    assert (many.sessions, many.engine.threads) == (3, 1)
    assert isinstance(many.engine, OpenVino)
    assert many.engine.enable_cpu_pinning is False
    (_, pinned) = concurrency_models(OpenVino(threads=2, enable_cpu_pinning=True))
    assert isinstance(pinned.engine, OpenVino)
    assert pinned.engine.enable_cpu_pinning is True
    assert [model.name for model in concurrency_models(Torch(threads=1))] == ["one_session"]
    assert [model.name for model in concurrency_models(Torch(threads=1), 0.0)] == ["one_session", "batched"]
    assert [model.name for model in concurrency_models(Torch(threads=2), 2.0)] == ["one_session", "many_sessions", "batched"]


def test_notes_say_how_idle_threads_behave_and_what_was_not_found() -> None:
    models = [result("one_session", 0, 10)]
    spinning, none_held, few = scenario_notes(models, OnnxRuntime(spinning=False))
    assert "spinning: false" in spinning
    assert none_held.startswith("one_session: found no rate with p99 within 5 ms: at 3 queries per second it was 7 ms")
    assert few.startswith("the shortest run has 100 queries, and MLPerf requires 270336 for a p99")


def test_scenarios_run_over_a_real_engine_in_both_models(make_artifact: Callable[..., Artifact]) -> None:
    artifact = make_artifact(Kind.ONNX)
    queries = [np.arange(1, length + 1) for length in (3, 5, 9)]
    told: list[tuple[str, float | None]] = []
    report = run_scenarios(
        Subject(artifact, OnnxRuntime(threads=2)),
        queries,
        Scenarios(rate=500, limit_ms=2, seconds=0.2, lengths=(8,), batches=(1, 4)),
        lambda message, share: told.append((message, share)),
    )
    assert [served.concurrency.name for served in report.models] == ["one_session", "many_sessions"]
    for served in report.models:
        assert list(served.single_stream) == [REAL_QUERIES, "8 tokens"]
        assert served.server is not None
        assert served.server.latency.n >= 100
        assert [each.batch for each in served.offline] == [1, 4]
        assert served.highest.limit_ms == 2
        assert served.highest.probes
    assert (report.limit_ms, report.limit_given) == (2, True)
    assert report.tokens == (3, 5, 9)
    assert ScenarioReport.model_validate_json(report.model_dump_json()) == report
    for table in report.tables():
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.columns)}
        assert table.note
    assert any(message.startswith("many_sessions: server at") for message, _ in told)
    shares = [share for _, share in told if share is not None]
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_batched_session_serves_concurrent_queries_with_the_delay(make_artifact: Callable[..., Artifact]) -> None:
    delay_ms = 1.0
    report = run_scenarios(
        Subject(make_artifact(Kind.ONNX), OnnxRuntime(threads=1)),
        [np.arange(1, length + 1) for length in (3, 5, 9)],
        Scenarios(limit_ms=2, seconds=0.2, batches=(4,), batch_delay_ms=delay_ms),
    )
    one, batched = report.models
    assert (batched.concurrency.name, batched.concurrency.sessions, batched.concurrency.batch_delay_ms) == ("batched", 1, delay_ms)
    assert (len(one.offline), batched.offline) == (1, ())
    # Alone, a query waits out the delay.
    assert batched.single_stream[REAL_QUERIES].latency.p50_ns.low >= delay_ms * 1e6
    assert batched.highest.probes
    assert ScenarioReport.model_validate_json(report.model_dump_json()) == report
    _, server, offline = report.tables()
    assert "batched" in [row[0] for row in server.rows]
    assert [row[0] for row in offline.rows] == ["one_session"]


def test_limit_that_is_not_given_comes_from_the_single_stream(make_artifact: Callable[..., Artifact]) -> None:
    report = run_scenarios(Subject(make_artifact(Kind.ONNX), OnnxRuntime(threads=1)), [np.arange(1, 6)], Scenarios(seconds=0.1, batches=()))
    (served,) = report.models
    assert report.limit_ms == pytest.approx(4 * served.single_stream[REAL_QUERIES].latency.p99_ns.point / 1e6)
    assert not report.limit_given
    assert (served.server, served.offline, report.serves_more) == (None, (), None)


@pytest.mark.parametrize(
    ("queries", "said"),
    [
        ([], "no queries"),
        ([np.arange(3), np.arange(0)], r"queries_token_ids\[1\] has shape \(0,\)"),
        ([np.ones((1, 3))], r"shape \(1, 3\)"),
    ],
)
def test_query_without_tokens_or_with_a_batch_axis_is_refused(
    make_checkpoint: Callable[..., Artifact], queries: list[NDArray[np.int64]], said: str
) -> None:
    with pytest.raises(MeasureError, match=said):
        run_scenarios(Subject(make_checkpoint(), Torch(threads=1)), queries, Scenarios())
