"""The verdict: a record against its recipe's targets.

A target is met only if the whole 95 % interval meets it, missed only if the whole interval misses it; anything else is
inconclusive, and says so rather than guess.
"""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from optbench.boxes import matching_box
from optbench.measure.accuracy import AccuracyResult, accuracy_change
from optbench.measure.settling import further
from optbench.measure.statistics import Interval
from optbench.record import Record

__all__ = ["Finding", "Outcome", "Verdict", "fastest_baseline", "judge"]


class Outcome(StrEnum):
    """What a target's interval says."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    NOT_JUDGED = "not judged"


class Finding(BaseModel):
    """One target and what became of it.

    Attributes:
        about: `over openvino fp32, 16 tokens`, `nDCG@10 on chorus`.
        outcome: of this target alone.
        value: the point estimate: a speed-up, milliseconds, or a relative change.
        low: lower end of the 95 % interval.
        high: upper end.
        limit: what was wanted.
        unit: of value, low, high and limit: `x`, `ms`, `relative change` or `cosine`.
        reason: in words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    about: str
    outcome: Outcome
    value: float
    low: float
    high: float
    limit: float
    unit: str
    reason: str


class Verdict(BaseModel):
    """All findings, and what they come to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    outcome: Outcome
    judged_by: str
    findings: tuple[Finding, ...]

    @property
    def exit_status(self) -> int:
        """0 pass, 1 fail, 3 inconclusive."""
        return {Outcome.PASS: 0, Outcome.FAIL: 1}.get(self.outcome, 3)


def _at_least(about: str, interval: Interval, limit: float, unit: str) -> Finding:
    """A finding whose value should be no less than the limit; `unit` is that of both."""
    if not interval.bounded:
        outcome, reason = Outcome.INCONCLUSIVE, f"{interval.n} rounds are too few for an interval: measure at least 6"
    elif interval.low >= limit:
        outcome, reason = Outcome.PASS, "the whole interval meets the target"
    elif interval.high < limit:
        outcome, reason = Outcome.FAIL, "the whole interval misses the target"
    else:
        more = f"about {further(interval, limit)} further {interval.of} would probably settle it"
        outcome, reason = Outcome.INCONCLUSIVE, f"the interval spans the target; {more}"
    return Finding(
        about=about, outcome=outcome, value=interval.point, low=interval.low, high=interval.high, limit=limit, unit=unit, reason=reason
    )


def fastest_baseline(record: Record, length: int) -> str:
    """The label of the fp32 baseline that is fastest at that length on this machine."""
    return min(record.baselines, key=lambda label: record.timing(label).median_ms(length))


def _latency_findings(record: Record) -> tuple[str, list[Finding]]:
    targets, final = record.recipe.targets, record.final.timing
    if final is None:
        return "nothing: latency was not measured", []
    box = matching_box(record.machine)
    on_box = box is not None and box.name == targets.box and record.isa is None and targets.latency_ms is not None
    candidate = record.timing(final)
    findings = []
    for length in record.recipe.workload.judged:
        if on_box and targets.latency_ms is not None:
            interval = candidate.typical_ms(length)
            # Less is better: turn the signs to use the one rule.
            turned = interval.model_copy(update={"point": -interval.point, "low": -interval.high, "high": -interval.low})
            finding = _at_least(f"p50 at {length} tokens", turned, -targets.latency_ms, "ms")
            true = {"value": interval.point, "low": interval.low, "high": interval.high, "limit": targets.latency_ms}
            findings.append(finding.model_copy(update=true))
            continue
        label = fastest_baseline(record, length)
        ratio = candidate.times_as_fast_as(record.timing(label), length)
        findings.append(_at_least(f"over {label}, {length} tokens", ratio, targets.speedup, "x"))
    if on_box:
        return f"milliseconds, on box {targets.box}", findings
    return f"the ratio to the fastest fp32 engine, as this machine is not box {targets.box}", findings


def _accuracy_findings(record: Record) -> list[Finding]:
    limit = record.recipe.targets.accuracy_loss_max
    base = {result.task: result for result in record.points[0].accuracy}
    return [_accuracy_finding(base[result.task], result, limit) for result in record.final.accuracy if result.task in base]


def _accuracy_finding(base: AccuracyResult, candidate: AccuracyResult, limit: float) -> Finding:
    change = accuracy_change(base, candidate)
    about = f"{candidate.main_metric} on {candidate.task}"
    return _at_least(about, change, -limit, "relative change")


def _stability_findings(record: Record) -> list[Finding]:
    """One finding a kind of change: the same computation gives the same vector or it does not, so there is no interval."""
    floor, stability = record.recipe.stability, record.stability
    if floor is None or stability is None:
        return []
    findings = []
    for changes in floor.changes:
        worst = stability.worst(changes)
        if worst is None or worst.fidelity is None:
            continue
        cosine = worst.fidelity.minimum
        met = cosine >= floor.cosine_min
        findings.append(
            Finding(
                about=f"stability: {worst.condition}",
                outcome=Outcome.PASS if met else Outcome.FAIL,
                value=cosine,
                low=cosine,
                high=cosine,
                limit=floor.cosine_min,
                unit="cosine",
                reason="every text stays above the floor" if met else worst.explanation or f"{worst.worst_text!r} moved most",
            )
        )
    return findings


def judge(record: Record) -> Verdict:
    """Judge the last point of a record against the recipe that it ran."""
    judged_by, findings = _latency_findings(record)
    if record.weights == "real":
        findings += [*_accuracy_findings(record), *_stability_findings(record)]
    outcomes = {finding.outcome for finding in findings}
    if Outcome.FAIL in outcomes:
        outcome = Outcome.FAIL
    elif Outcome.INCONCLUSIVE in outcomes or not findings:
        outcome = Outcome.INCONCLUSIVE
    else:
        outcome = Outcome.PASS
    if record.weights == "random":
        judged_by += "; accuracy is not judged: the weights are random"
    return Verdict(outcome=outcome, judged_by=judged_by, findings=tuple(findings))
