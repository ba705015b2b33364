"""How long a run still takes."""

import pytest

from optbench.run.listener import ExpectedStage
from optbench.run.time_left import TimeLeft


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_pace_of_a_stage_gives_its_time_left_and_falls_while_nothing_is_reported(clock: Clock) -> None:
    left = TimeLeft(clock)
    left.begin("latency")
    assert left.stage() is None
    left.update(0.0)
    clock.seconds = 10
    left.update(0.25)
    assert left.stage() == pytest.approx(30)
    clock.seconds = 20
    assert left.stage() == pytest.approx(20)
    assert left.run() is None


def test_share_that_begins_high_after_a_resumed_download_is_no_pace(clock: Clock) -> None:
    left = TimeLeft(clock)
    left.begin("base")
    clock.seconds = 1
    left.update(0.9)
    assert left.stage() is None
    clock.seconds = 2
    left.update(0.95)
    assert left.stage() == pytest.approx(1)


def test_finished_stages_correct_those_of_their_kind(clock: Clock) -> None:
    left = TimeLeft(clock)
    left.expect([ExpectedStage("0 a", "step", 10), ExpectedStage("1 b", "step", 20), ExpectedStage("export", "export", 1)])
    assert left.run() == pytest.approx(31)
    left.begin("0 a")
    clock.seconds = 40
    left.end()
    # Four times as slow as expected.
    assert left.run() == pytest.approx(80 + 1)
    left.begin("1 b")
    clock.seconds = 60
    assert left.stage() == pytest.approx(60)
    assert left.run() == pytest.approx(61)


def test_second_pass_of_a_stage_is_not_taken_for_its_end(clock: Clock) -> None:
    left = TimeLeft(clock)
    left.expect([ExpectedStage("accuracy", "accuracy", 100, several_passes=True)])
    left.begin("accuracy")
    for seconds, share in ((0, 0.0), (1, 0.9), (2, 0.0), (12, 0.5)):
        clock.seconds = seconds
        left.update(share)
    assert left.stage() == pytest.approx(88)
    clock.seconds = 99
    left.update(0.6)
    # At its present pace, it takes longer than was expected.
    assert left.stage() == pytest.approx(97 / 0.6 * 0.4)


def test_stage_that_was_left_out_is_not_waited_for(clock: Clock) -> None:
    left = TimeLeft(clock)
    left.expect([ExpectedStage("serving", "serving", 50), ExpectedStage("export", "export", 1)])
    left.begin("export")
    assert left.run() == pytest.approx(1)


def test_stage_that_nobody_expected_leaves_the_others(clock: Clock) -> None:
    left = TimeLeft(clock)
    left.expect([ExpectedStage("export", "export", 7)])
    left.begin("conformance")
    left.end()
    assert left.run() == pytest.approx(7)
