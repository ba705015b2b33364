"""The gate: does a proposed change make the artifact slower or less accurate than is allowed?

Records of two runs are set against each other as `optbench.record.compare` does it. Where both artifacts are at hand they can be timed
anew, in alternation: nothing then lies between them but what was changed, and far fewer rounds tell.
"""

import math
from collections.abc import Callable
from statistics import NormalDist

from optbench.errors import MeasureError
from optbench.machine.cpu import Isa
from optbench.machine.frozen import Frozen
from optbench.measure.accuracy import accuracy_change
from optbench.measure.latency import Timing
from optbench.measure.settling import further
from optbench.measure.statistics import Change, Interval
from optbench.recipe.schema import Workload
from optbench.record.compare import Pair, check_alike, percent_cells, unlike_results
from optbench.record.record import Record
from optbench.record.verdict import Outcome
from optbench.report.table import Table

__all__ = ["Check", "GateResult", "gate", "gate_table"]


class Check(Frozen):
    """One length or task of a gate.

    Attributes:
        about: `latency, 16 tokens`, `nDCG@10 on chorus`.
        outcome: pass, fail or inconclusive.
        change: relative: +0.10 is 10 % more time, -0.01 is 1 % less accuracy; None where nothing could be compared.
        limit: the change that is just allowed, in the same terms.
        further: processes, rounds or queries that would probably settle it; None where it is settled or no number would.
        reason: in words.
    """

    about: str
    outcome: Outcome
    change: Interval | None
    limit: float
    further: int | None = None
    reason: str


class GateResult(Frozen):
    """All checks, and what they come to: one confirmed regression fails it."""

    outcome: Outcome
    checks: tuple[Check, ...]
    notes: tuple[str, ...]

    @property
    def exit_status(self) -> int:
        """0 pass, 1 fail, 3 inconclusive."""
        return {Outcome.PASS: 0, Outcome.FAIL: 1}.get(self.outcome, 3)


class _OneRun:
    """Both artifacts timed in alternation; what a `Pair` says of two runs, of one."""

    deviation = 0.0

    def __init__(self, old: Timing, new: Timing) -> None:
        self._old, self._new = old, new
        self.lengths = sorted(old.samples_ns)

    def speed(self, length: int, *, deviation: float = 0.0) -> Interval:
        """How many times as fast the new artifact is."""
        return self._new.times_as_fast_as(self._old, length)

    def notes(self) -> list[str]:
        """What a reader should know before believing the ratios."""
        return ["both artifacts were timed anew, in alternation; accuracy is that of the records"]


def gate(
    old: Record,
    new: Record,
    *,
    latency_limit: float = 0.05,
    accuracy_limit: float = 0.01,
    retime: Callable[[Workload, Isa | None], tuple[Timing, Timing]] | None = None,
) -> GateResult:
    """Whether a change made things worse than is allowed.

    A check passes only if its whole 95 % interval is within the limit, and fails only if the whole interval is beyond it, so at
    a true change just at the limit either is wrong in about 1 of 40 runs, and further off far less often.

    Args:
        old: the record that stands.
        new: the record of what is proposed; of the same machine, workload and body.
        latency_limit: the share of time that may be added: 0.05 is 5 %.
        accuracy_limit: the share of a task's metric that may be lost.
        retime: times both artifacts, old and new, in one interleaved run; the latency of the records then plays no part, and they
            may be of different machines.

    Raises:
        RecordError: the two are not comparable; says in what.
    """
    nothing_changed = _nothing_changed(old, new)
    if retime is None:
        check_alike([old, new], "none")
        speeds: Pair | _OneRun = Pair(old, new)
    else:
        check_alike([old, new.model_copy(update={"machine": old.machine, "threads": old.threads})], "none")
        speeds = _OneRun(*retime(old.recipe.workload, old.isa))
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
    """Relative change of time from how many times as fast it is."""
    return speed.model_copy(update={"point": 1 / speed.point - 1, "low": 1 / speed.high - 1, "high": 1 / speed.low - 1})


def _latency_check(speeds: Pair | _OneRun, length: int, limit: float, nothing_changed: bool) -> Check:
    change = _slowdown(speeds.speed(length))
    about = f"latency, {length} tokens"
    if change.bounded and change.high <= limit:
        return Check(about=about, outcome=Outcome.PASS, change=change, limit=limit, reason="the whole interval is within the limit")
    if change.bounded and change.low > limit:
        if nothing_changed:
            reason = "nothing changed: the artifact, its engine and the libraries are the same, so this is what two runs differ by here"
            return Check(about=about, outcome=Outcome.INCONCLUSIVE, change=change, limit=limit, reason=reason)
        return Check(about=about, outcome=Outcome.FAIL, change=change, limit=limit, reason="the whole interval is beyond the limit")
    more: int | None = further(_slowdown(speeds.speed(length, deviation=0.0)), limit)
    # Rounds narrow what differs from round to round; what differs from run to run stays.
    stays = speeds.deviation * NormalDist().inv_cdf(0.975)
    if more == 0 or (change.bounded and speeds.deviation > 0 and stays >= abs(math.log((1 + change.point) / (1 + limit)))):
        more, reason = None, "the two runs differ by more than the artifacts may; measure both in one with --retime"
    else:
        found = "the interval spans the limit" if change.bounded else f"{change.n} rounds are too few for an interval"
        reason = f"{found}; about {more} more {change.of} of both would probably tell"
    return Check(about=about, outcome=Outcome.INCONCLUSIVE, change=change, limit=limit, further=more, reason=reason)


def _nothing_changed(old: Record, new: Record) -> bool:
    """Whether both runs timed one and the same thing; a process may be slow for its whole life."""
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
        unlike = "is in the old record only" if result is None else unlike_results(before, result)
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
        outcome, more = Outcome.INCONCLUSIVE, further(change, -limit)
        reason = f"the interval spans the limit; about {more} more queries would probably tell"
    return Check(about=about, outcome=outcome, change=change, limit=-limit, further=more, reason=reason)


def gate_table(result: GateResult) -> Table:
    """Each check, its interval, and what became of it."""
    rows = []
    for check in result.checks:
        found, interval = ("", "") if check.change is None else percent_cells(check.change)
        rows.append([check.about, found, interval, f"{100 * check.limit:+.1f}", check.reason, str(check.outcome)])
    note = " ".join(
        [
            "Changes in %, with 95 % intervals; more time and less accuracy are worse.",
            *(f"{text[0].upper()}{text[1:]}." for text in result.notes),
        ]
    )
    return Table(f"Gate: {result.outcome}", ["what", "change", "interval", "limit", "reason", "outcome"], rows, note)
