"""Progress: lines with the time left, live on a terminal, one a minute elsewhere."""

import io

import pytest
from rich.console import Console

from optbench.cli.progress import LiveWatch, Watch, live_progress, show_seconds
from optbench.run.listener import ExpectedStage

STAGES = [ExpectedStage("base", "base", 10), ExpectedStage("latency", "latency", 100), ExpectedStage("export", "export", 50)]


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "5 s"), (43, "45 s"), (89, "90 s"), (91, "2 min"), (1500, "25 min"), (7810, "2 h 10 min")]
)
def test_a_guess_is_shown_as_exactly_as_it_deserves(seconds: float, shown: str) -> None:
    assert show_seconds(seconds) == shown


def test_line_within_a_stage_says_how_far_it_is_and_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    watch = Watch(clock)
    watch.expect(STAGES)
    watch.begin("latency")
    watch.update("timing, round 0 of 18", 0.0)
    clock.seconds = 60
    watch.update("timing, round 9 of 18", 0.5)
    watch.say()
    assert capsys.readouterr().err == ("   60.0 s  latency: timing, round 9 of 18, 50%, about 60 s left, whole run about 2 min left\n")


def test_stage_that_reports_nothing_is_still_named(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    watch = Watch(clock)
    watch.begin("verify")
    clock.seconds = 61
    watch.say()
    assert capsys.readouterr().err == "   61.0 s  verify: running\n"
    watch.end("12 files")
    watch.say()
    assert capsys.readouterr().err == "   61.0 s  verify: 12 files\n"


@pytest.mark.parametrize("width", [60, 120])
def test_live_lines_show_the_stage_and_the_whole_run_within_the_width(width: int) -> None:
    clock = Clock()
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    progress = live_progress(console)
    watch = LiveWatch(progress, clock)
    watch.expect(STAGES)
    watch.begin("latency")
    watch.update("opening openvino fp32 [:b:]", 0.0)
    clock.seconds = 30
    watch.update("opening openvino fp32 [:b:]", 0.5)
    console.print(progress)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    first, second = shown.splitlines()
    assert "latency" in first
    assert "about 30 s left" in first
    assert "whole run" in second
    assert "about 80 s left" in second
    assert max(len(first), len(second)) <= width
    assert ("opening openvino fp32 [:b:]" in first) == (width == 120)


def test_without_expectations_no_time_of_the_whole_run_is_shown() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    progress = live_progress(console)
    LiveWatch(progress, Clock()).begin("verify")
    console.print(progress)
    assert "whole run" not in console.file.getvalue()  # type: ignore[attr-defined]
