"""Noise around a measurement, on made-up trees of /proc and /sys."""

from collections.abc import Callable
from pathlib import Path

import pytest

from optbench.measure.machine_state import check_machine_state

Tree = Callable[..., Path]

# user nice system idle iowait irq softirq steal guest guest_nice
QUIET = "cpu  1000 0 200 8000 100 0 10 0 0 0\ncpu0 1 2 3\n"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    def write(**files: str) -> Path:
        for name, content in files.items():
            path = tmp_path / name.replace("__", "/").replace("PROC", "proc").replace("CPUS", "sys/devices/system/cpu")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content + "\n")
        return tmp_path

    return write


def check(root: Path, later: str = QUIET) -> tuple[str, ...]:
    """Check, with /proc/stat as it is `later` once the watch is over."""

    def pause(seconds: float) -> None:
        (root / "proc/stat").write_text(later)

    return check_machine_state(root, pause)


def test_machine_that_shows_nothing_is_passed_over(tmp_path: Path) -> None:
    def pause(seconds: float) -> None:
        raise AssertionError("nothing to watch, so nothing to wait for")

    assert check_machine_state(tmp_path, pause) == ()


def test_quiet_machine_gives_no_warning(tree: Tree) -> None:
    root = tree(
        PROC__stat=QUIET,
        PROC__meminfo="MemTotal: 100 kB\nSwapTotal:  8000000 kB\nSwapFree:   7990000 kB",
        CPUS__cpu0__cpufreq__scaling_governor="performance",
        CPUS__cpu0__thermal_throttle__core_throttle_count="0",
        CPUS__intel_pstate__no_turbo="1",
        CPUS__cpufreq__boost="0",
        sys__fs__cgroup__cpu="",
    )
    assert check(root, "cpu  1000 0 201 8048 101 0 10 0 0 0\n") == ()


def test_governors_other_than_performance_are_named_once(tree: Tree) -> None:
    root = tree(
        CPUS__cpu0__cpufreq__scaling_governor="powersave",
        CPUS__cpu1__cpufreq__scaling_governor="performance",
        CPUS__cpu2__cpufreq__scaling_governor="powersave",
        CPUS__cpu11__cpufreq__scaling_governor="schedutil",
    )
    (sentence,) = check(root)
    assert sentence.startswith("the CPU frequency follows the load (governor powersave, schedutil); run: cpupower")


@pytest.mark.parametrize(("name", "on", "off"), [("CPUS__intel_pstate__no_turbo", "0", "1"), ("CPUS__cpufreq__boost", "1", "0")])
def test_turbo_is_told_for_each_driver(tree: Tree, name: str, on: str, off: str) -> None:
    assert check(tree(**{name: off})) == ()
    (sentence,) = check(tree(**{name: on}))
    assert "turbo is on" in sentence


def test_throttling_is_told_of_the_hottest_core(tree: Tree) -> None:
    root = tree(CPUS__cpu0__thermal_throttle__core_throttle_count="3", CPUS__cpu1__thermal_throttle__core_throttle_count="41")
    (sentence,) = check(root)
    assert "throttled 41 times since boot" in sentence


@pytest.mark.parametrize(("quota", "warned"), [("150000 100000", True), ("200000 100000", False), ("max 100000", False)])
def test_quota_that_is_not_whole_cpus_is_told(tree: Tree, quota: str, warned: bool) -> None:
    root = tree(PROC__self__cgroup="0::/job")
    (root / "sys/fs/cgroup/job").mkdir(parents=True)
    (root / "sys/fs/cgroup/job/cpu.max").write_text(quota)
    assert [("1.5 CPUs" in sentence) for sentence in check(root)] == [True] * warned


def test_memory_in_swap_is_told(tree: Tree) -> None:
    (sentence,) = check(tree(PROC__meminfo="SwapTotal: 1000000 kB\nSwapFree: 500000 kB"))
    assert sentence == "512 MB are swapped out; close programs until the models fit in memory"


@pytest.mark.parametrize("meminfo", ["SwapTotal: 0 kB\nSwapFree: 0 kB", "SwapTotal: 10 kB", "SwapTotal: x kB\nSwapFree: y kB", ""])
def test_no_swap_or_none_shown_is_no_warning(tree: Tree, meminfo: str) -> None:
    assert check(tree(PROC__meminfo=meminfo)) == ()


def test_other_programs_are_told_with_their_share(tree: Tree) -> None:
    # 50 ticks later: 10 of user, 2 of system, 38 idle.
    (sentence,) = check(tree(PROC__stat=QUIET), "cpu  1010 0 202 8038 100 0 10 0 0 0\n")
    assert sentence == "other programs kept the CPUs 24 % busy just before the measurement; stop them and measure again"


def test_clock_that_did_not_tick_is_no_warning(tree: Tree) -> None:
    assert check(tree(PROC__stat=QUIET), QUIET) == ()


def test_stolen_time_is_told_and_is_not_other_programs(tree: Tree) -> None:
    (sentence,) = check(tree(PROC__stat="cpu  100 0 0 850 0 0 0 50 0 0\n"), "cpu  100 0 0 890 0 0 0 60 0 0\n")
    assert sentence.startswith("the hypervisor has stolen 5.0 % of the CPU time since boot")


@pytest.mark.parametrize("stat", ["cpu 1 2 3\n", "intr 5\n", "cpu a b c d e f g h i\n", ""])
def test_broken_stat_is_passed_over(tree: Tree, stat: str) -> None:
    assert check(tree(PROC__stat=stat)) == ()


def test_this_machine_is_read_without_an_error() -> None:
    waited: list[float] = []
    assert all(isinstance(sentence, str) for sentence in check_machine_state(pause=waited.append))
    assert waited == [0.25]
