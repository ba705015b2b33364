"""The gate: is a new artifact slower or less accurate than allowed?

Records of two runs are compared as in `optbench.record.compare`. If both artifacts are available, they can be timed again in one
interleaved run, which needs far fewer rounds.
"""

import math
from collections.abc import Callable
from statistics import NormalDist

from optbench.errors import MeasureError
from optbench.machine.cpu import Isa
from optbench.machine.frozen import Frozen
from optbench.measure.accuracy import accuracy_change
from optbench.measure.latency import Timing
from optbench.measure.sample_size import samples_needed
from optbench.measure.statistics import Change, Interval
from optbench.recipe.schema import Workload
from optbench.record.compare import RunPair, check_alike, pairing_problem
from optbench.record.record import Record
from optbench.record.verdict import Outcome

__all__ = ["Check", "GateResult", "gate"]


class Check(Frozen):
    """The check of one length or task.

    Attributes:
        about: `latency, 16 tokens`, `nDCG@10 on chorus`.
        change: relative: +0.10 is 10 % more time, -0.01 is 1 % less accuracy; None if nothing could be compared.
        limit: the largest allowed change.
        further: how many more processes, rounds or queries would probably settle it; None if it is settled or no number would.
    """

    about: str
    outcome: Outcome
    change: Interval | None
    limit: float
    further: int | None = None
    reason: str


class GateResult(Frozen):
    """All checks and the overall outcome: one confirmed regression fails it."""

    outcome: Outcome
    checks: tuple[Check, ...]
    notes: tuple[str, ...]

    @property
    def exit_status(self) -> int:
        """0 pass, 1 fail, 3 inconclusive."""
        return {Outcome.PASS: 0, Outcome.FAIL: 1}.get(self.outcome, 3)


class _InterleavedRun:
    """Both artifacts timed in one interleaved run, with the interface of `RunPair`."""

    deviation = 0.0

    def __init__(self, old: Timing, new: Timing) -> None:
        self._old, self._new = old, new
        self.lengths = sorted(old.samples_ns)

    def speed(self, length: int, *, deviation: float = 0.0) -> Interval:
        """The speed-up of the new artifact over the old one."""
        return self._new.times_as_fast_as(self._old, length)

    def notes(self) -> list[str]:
        """Notes on how to read the ratios."""
        return ["both artifacts were timed again in one interleaved run; accuracy is from the records"]


def gate(
    old: Record,
    new: Record,
    *,
    latency_limit: float = 0.05,
    accuracy_limit: float = 0.01,
    retime: Callable[[Workload, Isa | None], tuple[Timing, Timing]] | None = None,
) -> GateResult:
    """Check whether a change is a regression beyond the limits.

    A check passes only if its whole 95 % interval is within the limit, and fails only if the whole interval is beyond it. For a true
    change at the limit, either is wrong in about 1 of 40 runs.

    Args:
        old: the reference record.
        new: the record to check, of the same machine, workload and body.
        latency_limit: allowed relative increase of latency: 0.05 is 5 %.
        accuracy_limit: allowed relative loss of a task's metric.
        retime: times both artifacts, old and new, in one interleaved run; the records' latency is then ignored, and they may be of
            different machines.

    Raises:
        RecordError: the two are not comparable; names the difference.
    """
    nothing_changed = _nothing_changed(old, new)
    if retime is None:
        check_alike([old, new], "none")
        speeds: RunPair | _InterleavedRun = RunPair(old, new)
    else:
        check_alike([old, new.model_copy(update={"machine": old.machine, "threads": old.threads})], "none")
        speeds = _InterleavedRun(*retime(old.recipe.workload, old.isa))
    checks = [_latency_check(speeds, length, latency_limit, nothing_changed) for length in speeds.lengths]
    notes = speeds.notes()
    if old.weights == "random":
        notes.append("accuracy is not judged: the weights are random")
    elif not old.final.accuracy:
        notes.append("accuracy is not judged: the old record has none")
    else:
        checks += _accuracy_checks(old, new, accuracy_limit)
    if any(check.outcome == Outcome.FAIL and check.about.startswith("latency") for check in checks):
        notes.append("a process may be slow for its whole life: measure the new artifact once more before acting on a slowdown")
    outcomes = {check.outcome for check in checks}
    outcome = next((each for each in (Outcome.FAIL, Outcome.INCONCLUSIVE) if each in outcomes), Outcome.PASS)
    return GateResult(outcome=outcome, checks=tuple(checks), notes=tuple(notes))


def _slowdown(speed: Interval) -> Interval:
    """The relative change of latency from a speed-up."""
    return speed.model_copy(update={"point": 1 / speed.point - 1, "low": 1 / speed.high - 1, "high": 1 / speed.low - 1})


def _latency_check(speeds: RunPair | _InterleavedRun, length: int, limit: float, nothing_changed: bool) -> Check:
    change = _slowdown(speeds.speed(length))
    about = f"latency, {length} tokens"
    if change.bounded and change.high <= limit:
        return Check(about=about, outcome=Outcome.PASS, change=change, limit=limit, reason="the whole interval is within the limit")
    if change.bounded and change.low > limit:
        if nothing_changed:
            reason = "the artifact, its engine and the libraries are unchanged, so this is the variation between runs"
            return Check(about=about, outcome=Outcome.INCONCLUSIVE, change=change, limit=limit, reason=reason)
        return Check(about=about, outcome=Outcome.FAIL, change=change, limit=limit, reason="the whole interval is beyond the limit")
    more: int | None = samples_needed(_slowdown(speeds.speed(length, deviation=0.0)), limit)
    # More rounds do not reduce the variation from run to run.
    between_runs = speeds.deviation * NormalDist().inv_cdf(0.975)
    if more == 0 or (change.bounded and speeds.deviation > 0 and between_runs >= abs(math.log((1 + change.point) / (1 + limit)))):
        more, reason = None, "the variation between the runs exceeds the limit; time both in one run with --retime"
    else:
        found = "the interval spans the limit" if change.bounded else f"{change.n} rounds are too few for an interval"
        reason = f"{found}; about {more} more {change.of} of both would probably settle it"
    return Check(about=about, outcome=Outcome.INCONCLUSIVE, change=change, limit=limit, further=more, reason=reason)


def _nothing_changed(old: Record, new: Record) -> bool:
    """Whether both runs timed the same thing; a process may be slow for its whole life."""
    return all(
        before == after
        for before, after in (
            (old.final.artifact_sha256, new.final.artifact_sha256),
            (old.final.engine, new.final.engine),
            (old.libraries, new.libraries),
        )
    )


def _accuracy_checks(old: Record, new: Record, limit: float) -> list[Check]:
    after = {result.task: result for result in new.final.accuracy}
    index = new.recipe.targets.index
    checks = []
    for before in old.final.accuracy:
        about = f"{before.main_metric} on {before.task}" + (", fp32 index" if index == "fp32" else "")
        result = after.get(before.task)
        unlike = "is in the old record only" if result is None else pairing_problem(before, result)
        if result is None or unlike is not None:
            reason = f"{unlike}; measure both on the same task"
            checks.append(Check(about=about, outcome=Outcome.INCONCLUSIVE, change=None, limit=-limit, reason=reason))
            continue
        try:
            checks.append(_accuracy_check(about, accuracy_change(before.on_index(index), result.on_index(index)), limit))
        except MeasureError as error:
            checks.append(Check(about=about, outcome=Outcome.INCONCLUSIVE, change=None, limit=-limit, reason=str(error)))
    return checks


def _accuracy_check(about: str, change: Change, limit: float) -> Check:
    more = None
    if change.low >= -limit:
        outcome, reason = Outcome.PASS, "the whole interval is within the limit"
    elif change.high < -limit:
        outcome, reason = Outcome.FAIL, "the whole interval is beyond the limit"
    else:
        outcome, more = Outcome.INCONCLUSIVE, samples_needed(change, -limit)
        reason = f"the interval spans the limit; about {more} more queries would probably settle it"
    return Check(about=about, outcome=outcome, change=change, limit=-limit, further=more, reason=reason)
