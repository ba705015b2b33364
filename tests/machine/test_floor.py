"""The floor by arithmetic on known peaks, and the peaks as they are measured."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from optbench.errors import MeasureError
from optbench.machine.floor import Floor, ProbeResult, WeightFormat, floor_ms, probe
from optbench.machine.peaks import ROUNDS_MIN, Peaks, last_level_cache_bytes, time_rounds
from optbench.model.body import Body

LARGE = Body(architecture="BertModel", layers=24, hidden=1024, heads=16, feed_forward=4096, vocabulary=30522, positions=512)
MINILM = Body(architecture="BertModel", layers=6, hidden=384, heads=12, feed_forward=1536, vocabulary=30522, positions=512)


def peaks(read: float = 68.0, int8: float = 1.64, **changes: object) -> Peaks:
    values: dict[str, object] = {"threads": 2, "read_gb_per_s": read, "gemm_tops": {"fp32": 0.4, "int8": int8}}
    return Peaks.model_validate({**values, **changes})


def floor_of(body: Body, tokens: int, batch: int, machine: Peaks, weights: WeightFormat) -> Floor:
    return floor_ms(body.multiply_adds(tokens, batch), body.weights, weights, machine)


def test_weights_and_multiply_adds_of_bert_large() -> None:
    # 24 layers of 4 x 1024 x 1024 + 2 x 1024 x 4096.
    assert LARGE.weights == 301_989_888
    # Of a single token, each weight once, and one score and one value of width 1024 in each layer.
    assert LARGE.multiply_adds(1) == 301_989_888 + 24 * 2 * 1024
    assert LARGE.multiply_adds(16, batch=3) == 3 * LARGE.multiply_adds(16)


@pytest.mark.parametrize(
    ("tokens", "low", "high", "bound_by"),
    [(8, 4.5, 6.9, "memory"), (32, 11.8, 11.8, "compute"), (64, 24, 24, "compute"), (128, 47, 47, "compute")],
)
def test_floor_agrees_with_the_one_computed_by_hand(tokens: int, low: float, high: float, bound_by: str) -> None:
    # By hand: 302 MB of int8 weights at 44 to 68 GB/s, or the weights' products at 1.64 TOP/s (two operations a multiply-add). It left
    # attention out, 2 % of the multiply-adds at 128 tokens, and gave two digits, another 1-2 %.
    for read, by_hand in ((68.0, low), (44.0, high)):
        floor = floor_of(LARGE, tokens, 1, peaks(read), "int8")
        assert floor.ms == pytest.approx(by_hand, rel=0.03)
        assert floor.bound_by == bound_by


def test_each_format_reads_its_own_bytes_and_int4_multiplies_in_int8() -> None:
    by_format = {weights: floor_of(LARGE, 16, 1, peaks(), weights) for weights in ("fp32", "int8", "int4")}
    assert by_format["fp32"].memory_ms == pytest.approx(4 * by_format["int8"].memory_ms)
    assert by_format["int4"].memory_ms == pytest.approx(by_format["int8"].memory_ms / 2)
    assert by_format["int4"].compute_ms == by_format["int8"].compute_ms
    assert by_format["fp32"].compute_ms == pytest.approx(by_format["int8"].compute_ms * 1.64 / 0.4)


def test_batch_multiplies_the_arithmetic_and_not_the_weights() -> None:
    one, four = (floor_of(LARGE, 16, batch, peaks(), "int8") for batch in (1, 4))
    assert four.memory_ms == one.memory_ms
    assert four.compute_ms == pytest.approx(4 * one.compute_ms)


def test_weights_that_fit_in_the_cache_are_read_at_its_bandwidth() -> None:
    cached = peaks(cache_bytes=32 * 2**20, cache_read_gb_per_s=200.0)
    # MiniLM's 10.6 MB of int8 weights fit, its 42 MB in fp32 do not.
    assert floor_of(MINILM, 8, 1, cached, "int8").memory_ms == pytest.approx(MINILM.weights / 200e9 * 1e3)
    assert floor_of(MINILM, 8, 1, cached, "fp32").memory_ms == pytest.approx(4 * MINILM.weights / 68e9 * 1e3)


def test_arithmetic_that_the_machine_lacks_has_no_floor() -> None:
    with pytest.raises(MeasureError, match="bf16: this machine has no bf16 products; use fp32 or int8"):
        floor_of(LARGE, 8, 1, peaks(), "bf16")


# Measuring.


class Steps:
    """A clock that moves on by a second whenever it is read."""

    def __init__(self) -> None:
        self.now = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        with self._lock:
            self.now += 1.0
            return self.now


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, ROUNDS_MIN), (100.0, None)])
def test_rounds_run_for_the_time_given_and_at_least_the_fewest(seconds: float, rounds: int | None) -> None:
    clock, ran = Steps(), []
    taken = time_rounds([lambda: ran.append(1)], seconds, clock)
    # The first round, which builds the kernel, ran too and is left out.
    assert len(ran) == len(taken) + 1
    assert set(taken) == {1.0}
    if rounds is None:
        # Three readings of the clock a round: the deadline, the start and the end.
        assert len(ran) == pytest.approx(seconds / 3, abs=2)
    else:
        assert len(taken) == rounds


def test_kernels_of_a_round_run_at_once() -> None:
    together = threading.Barrier(3)
    kernels: list[Callable[[], object]] = [lambda: together.wait(timeout=30) for _ in range(3)]
    assert len(time_rounds(kernels, 0.0)) == ROUNDS_MIN


def test_error_in_a_kernel_comes_out_and_stops_the_others() -> None:
    def fail() -> None:
        raise ZeroDivisionError("in a thread")

    with pytest.raises(ZeroDivisionError, match="in a thread"):
        time_rounds([fail, lambda: None], 60.0)


def write_cache(root: Path, cpu: int, index: int, level: int, kind: str, size: str, shared: str) -> None:
    folder = root / f"cpu{cpu}" / "cache" / f"index{index}"
    folder.mkdir(parents=True)
    for name, value in {"level": str(level), "type": kind, "size": size, "shared_cpu_list": shared}.items():
        (folder / name).write_text(value + "\n")


def test_last_level_caches_are_summed_once_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2})
    for cpu in range(4):
        write_cache(tmp_path, cpu, 0, 1, "Data", "48K", str(cpu))
        write_cache(tmp_path, cpu, 1, 1, "Instruction", "32K", str(cpu))
        write_cache(tmp_path, cpu, 3, 3, "Unified", "32768K", "0-1" if cpu < 2 else "2-3")
    # Two caches are reached by the three allowed CPUs.
    assert last_level_cache_bytes(tmp_path) == 2 * 32 * 2**20


def test_cache_that_the_kernel_does_not_show_counts_as_none(tmp_path: Path) -> None:
    assert last_level_cache_bytes(tmp_path) == 0


def test_probe_of_this_machine_finds_every_figure_and_survives_json() -> None:
    reported: list[str] = []
    found = probe(1, lambda message, share: reported.append(message))
    assert ProbeResult.model_validate_json(found.model_dump_json()) == found
    expected = {"fp32", "int8", *(["bf16"] if found.machine.has_bf16 else [])}
    assert set(found.peaks.gemm_tops) == expected
    assert expected <= set(found.peaks.kernels)
    assert found.peaks.threads == 1
    # Each peak is its figure's best round, so no middle one is above it.
    for name, peak in found.peaks.gemm_tops.items():
        assert peak >= found.peaks.medians[name] > 0
    assert "reading memory" in reported
