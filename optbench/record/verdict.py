"""The verdict: a record against its recipe's targets.

A target passes only if the whole 95 % interval meets it, and fails only if the whole interval misses it; otherwise it is inconclusive.

With several tasks or languages, the weighted mean of their changes must meet the limit, and no single task may fail it. A single task
that is inconclusive does not prevent a pass, because it has fewer queries than all together.
"""

from collections.abc import Sequence
from enum import StrEnum

from optbench.machine.boxes import matching_box
from optbench.machine.frozen import Frozen
from optbench.measure.accuracy import AccuracyResult, Index, accuracy_change
from optbench.measure.sample_size import samples_needed
from optbench.measure.statistics import Interval
from optbench.measure.weighting import weighted_mean_change
from optbench.recipe.schema import Targets
from optbench.record.record import Record

__all__ = ["Finding", "Outcome", "Verdict", "accuracy_findings", "fastest_baseline", "judge", "judged_in_ms"]


class Outcome(StrEnum):
    """The outcome of a target."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    NOT_JUDGED = "not judged"


class Finding(Frozen):
    """One target and its outcome.

    Attributes:
        about: `over openvino fp32, 16 tokens`, `nDCG@10 on chorus`.
        value: the point estimate; `low` and `high` are the ends of its 95 % interval.
        unit: of value, low, high and limit: `x`, `ms`, `relative change` or `cosine`.
        decides: false for one task of several, which matters to the verdict only if it fails.
    """

    about: str
    outcome: Outcome
    value: float
    low: float
    high: float
    limit: float
    unit: str
    reason: str
    decides: bool = True


class Verdict(Frozen):
    """All findings and the overall outcome.

    Attributes:
        latency_only: the weights are random, so accuracy was not judged.
    """

    outcome: Outcome
    judged_by: str
    findings: tuple[Finding, ...]
    latency_only: bool = False

    @property
    def title(self) -> str:
        """The outcome as people read it: `pass`, or `pass, latency only`."""
        return f"{self.outcome}, latency only" if self.latency_only else str(self.outcome)

    @property
    def exit_status(self) -> int:
        """0 pass, 1 fail, 3 inconclusive."""
        return {Outcome.PASS: 0, Outcome.FAIL: 1}.get(self.outcome, 3)


def _at_least(about: str, interval: Interval, limit: float, unit: str) -> Finding:
    """The finding of a value that must be at least the limit."""
    if not interval.bounded:
        outcome, reason = Outcome.INCONCLUSIVE, f"{interval.n} rounds are too few for an interval: measure at least 6"
    elif interval.low >= limit:
        outcome, reason = Outcome.PASS, "the whole interval meets the target"
    elif interval.high < limit:
        outcome, reason = Outcome.FAIL, "the whole interval misses the target"
    else:
        more = f"about {samples_needed(interval, limit)} more {interval.of} would probably settle it"
        outcome, reason = Outcome.INCONCLUSIVE, f"the interval spans the target; {more}"
    return Finding(
        about=about, outcome=outcome, value=interval.point, low=interval.low, high=interval.high, limit=limit, unit=unit, reason=reason
    )


def fastest_baseline(record: Record, length: int) -> str:
    """The label of the fp32 baseline that is fastest at that length on this machine."""
    return min(record.baselines, key=lambda label: record.timing(label).median_ms(length))


def judged_in_ms(record: Record) -> bool:
    """Whether the recipe's milliseconds decide: the machine is the box that they refer to, at its full instruction set."""
    targets, box = record.recipe.targets, matching_box(record.machine)
    return box is not None and box.name == targets.box and record.isa is None and targets.latency_ms is not None


def _latency_findings(record: Record) -> tuple[str, list[Finding]]:
    targets, final = record.recipe.targets, record.final.timing
    if final is None:
        return "nothing: latency was not measured", []
    on_box = judged_in_ms(record)
    candidate = record.timing(final)
    findings = []
    for length in record.recipe.workload.judged:
        if on_box and targets.latency_ms is not None:
            interval = candidate.typical_ms(length)
            # Less is better: negate to apply the same rule.
            negated = interval.model_copy(update={"point": -interval.point, "low": -interval.high, "high": -interval.low})
            finding = _at_least(f"p50 at {length} tokens", negated, -targets.latency_ms, "ms")
            true = {"value": interval.point, "low": interval.low, "high": interval.high, "limit": targets.latency_ms}
            findings.append(finding.model_copy(update=true))
            continue
        label = fastest_baseline(record, length)
        ratio = candidate.times_as_fast_as(record.timing(label), length)
        findings.append(_at_least(f"over {label}, {length} tokens", ratio, targets.speedup, "x"))
    if on_box:
        return f"milliseconds, on box {targets.box}", findings
    return f"the ratio to the fastest fp32 engine, as this machine is not box {targets.box}", findings


_JUDGED_INDEX: dict[Index, str] = {
    "own": "accuracy with queries and documents of the result",
    "fp32": "accuracy with the result's queries in the fp32 base's index",
}
_ON_INDEX: dict[Index, str] = {"own": "", "fp32": ", fp32 index"}


def accuracy_findings(base: Sequence[AccuracyResult], candidate: Sequence[AccuracyResult], targets: Targets) -> list[Finding]:
    """Judge each task that both were measured on, and the weighted mean if there are several.

    Raises:
        MeasureError: the target is for the fp32 base's index, and the candidate was not measured on it.
    """
    before = {result.task: result for result in base}
    pairs = [(before[result.task], result.on_index(targets.index)) for result in candidate if result.task in before]
    findings = [_accuracy_finding(old, new, targets.accuracy_loss_max, targets.index) for old, new in pairs]
    if len(findings) < 2:
        return findings
    change = weighted_mean_change(pairs)
    limit = -targets.accuracy_loss_max
    about = f"weighted mean of {len(pairs)} tasks" + _ON_INDEX[targets.index]
    mean = _at_least(about, change, limit, "relative change")
    return [*(finding.model_copy(update={"decides": False}) for finding in findings), mean]


def _accuracy_finding(base: AccuracyResult, candidate: AccuracyResult, limit: float, index: Index) -> Finding:
    change = accuracy_change(base, candidate)
    about = f"{candidate.main_metric} on {candidate.task}" + _ON_INDEX[index]
    return _at_least(about, change, -limit, "relative change")


def _stability_findings(record: Record) -> list[Finding]:
    """One finding per kind of change, without intervals: the computation is deterministic."""
    target, stability = record.recipe.stability, record.stability
    if target is None or stability is None:
        return []
    findings = []
    for changes in target.changes:
        worst = stability.worst(changes)
        if worst is None or worst.fidelity is None:
            continue
        cosine = worst.fidelity.minimum
        met = cosine >= target.cosine_min
        findings.append(
            Finding(
                about=f"stability: {worst.condition}",
                outcome=Outcome.PASS if met else Outcome.FAIL,
                value=cosine,
                low=cosine,
                high=cosine,
                limit=target.cosine_min,
                unit="cosine",
                reason="no text is below the limit" if met else worst.explanation or f"{worst.worst_text!r} moved most",
            )
        )
    return findings


def judge(record: Record) -> Verdict:
    """Judge the last point of a record against the recipe's targets."""
    judged_by, findings = _latency_findings(record)
    if record.weights == "real":
        accuracy = accuracy_findings(record.points[0].accuracy, record.final.accuracy, record.recipe.targets)
        findings += [*accuracy, *_stability_findings(record)]
        judged_by += f"; {_JUDGED_INDEX[record.recipe.targets.index]}" if accuracy else ""
    outcomes = {finding.outcome for finding in findings if finding.decides or finding.outcome == Outcome.FAIL}
    if Outcome.FAIL in outcomes:
        outcome = Outcome.FAIL
    elif Outcome.INCONCLUSIVE in outcomes or not findings:
        outcome = Outcome.INCONCLUSIVE
    else:
        outcome = Outcome.PASS
    if record.weights == "random":
        judged_by += "; accuracy is not judged: the weights are random"
    return Verdict(outcome=outcome, judged_by=judged_by, findings=tuple(findings), latency_only=record.weights == "random")
