"""What a person ran `apply` for, in a few lines: verdict, latency before and after, loss, folder, the next command."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from optbench.measure.timing_warnings import timing_warnings
from optbench.record.record import Record
from optbench.record.verdict import Finding, Outcome, Verdict, fastest_baseline
from optbench.report.table import latency_interval, reading_length

__all__ = ["Summary", "noise_grouped", "summarize"]


@dataclass(frozen=True)
class Summary:
    """The verdict, and lines of a label and a text."""

    verdict: str
    outcome: Outcome
    lines: Sequence[tuple[str, str]]


def summarize(record: Record, verdict: Verdict, folder: Path) -> Summary:
    """Summarize a run whose artifact is in `folder`."""
    said = f"{record.recipe.name}: {verdict.outcome}"
    if record.weights == "random":
        said += " (latency only: the weights are random)"
    lines = [("latency", line) for line in _latency_lines(record, verdict)]
    lines += [("loss", line) for line in _loss_lines(record, verdict)]
    lines += [("stability", _settled(finding)) for finding in verdict.findings if finding.unit == "cosine" and _matters(finding)]
    sizes = f"{record.final.size_bytes / 1e6:.0f} MB, the base has {record.points[0].size_bytes / 1e6:.0f}"
    lines += [("folder", f"{folder}  ({sizes})"), ("next", shlex.join(["optbench", "report", str(folder)]))]
    # A label stands once.
    shown = [(label if index == 0 or lines[index - 1][0] != label else "", text) for index, (label, text) in enumerate(lines)]
    return Summary(said, verdict.outcome, shown)


def noise_grouped(record: Record) -> list[str]:
    """The record's warnings, those of noisy timings as one."""
    noisy = set(timing_warnings(record.timings))
    others = [warning for warning in record.warnings if warning not in noisy]
    found = len(noisy.intersection(record.warnings))
    if not found:
        return others
    reasons = {warning.partition(" tokens: ")[2].partition("; ")[0] for warning in noisy if " tokens: " in warning}
    kinds = "; ".join(sorted(reasons))
    return [*others, f"noisy timings ({kinds}): the intervals allow for it, a quiet machine narrows them; optbench report lists them"]


def _latency_lines(record: Record, verdict: Verdict) -> list[str]:
    if record.final.timing is None or not record.baselines:
        return ["not measured"]
    length = reading_length(record)
    label = fastest_baseline(record, length)
    before, after = record.timing(label), record.timing(record.final.timing)
    ratio = after.times_as_fast_as(before, length)
    milliseconds = f"{latency_interval(before, length).point:.3g} -> {latency_interval(after, length).point:.3g} ms at {length} tokens"
    found = f"{ratio.point:.2f}x as fast as {label} ({ratio.low:.2f}..{ratio.high:.2f})"
    judged = [finding for finding in verdict.findings if finding.unit in ("x", "ms")]
    if not judged:
        return [f"{milliseconds}, {found}"]
    first = judged[0]
    target = f"target {'<=' if first.unit == 'ms' else '>='} {first.limit:.2f}{' ms' if first.unit == 'ms' else 'x'}"
    met = [finding for finding in judged if finding.outcome is Outcome.PASS]
    lines = [f"{milliseconds}, {found}; {target}: met at {len(met)} of {len(judged)} lengths"]
    return lines + [_settled(finding) for finding in judged if _matters(finding)]


def _loss_lines(record: Record, verdict: Verdict) -> list[str]:
    if record.weights == "random":
        return ["not judged: the weights are random"]
    synthetic = {result.task for result in record.final.accuracy if result.synthetic}
    judged = [finding for finding in verdict.findings if finding.unit == "relative change"]
    lines = []
    for finding in judged:
        if finding.decides or _matters(finding):
            made = " (synthetic)" if any(f" on {task}" in finding.about for task in synthetic) else ""
            lines.append(f"{_settled(finding)}{made}")
    return lines or ["not measured"]


def _matters(finding: Finding) -> bool:
    """Whether it keeps the verdict from a pass."""
    return finding.outcome is Outcome.FAIL or (finding.decides and finding.outcome is Outcome.INCONCLUSIVE)


def _settled(finding: Finding) -> str:
    """A finding in one line: what, value, interval, limit, outcome and, where it is no pass, why."""
    if finding.unit == "relative change":
        shown = f"{100 * finding.value:+.1f} % ({100 * finding.low:+.1f}..{100 * finding.high:+.1f}), at least {100 * finding.limit:+.1f} %"
    elif finding.unit == "cosine":
        shown = f"cosine {finding.value:.6f}, at least {finding.limit:g}"
    else:
        sign = "at most" if finding.unit == "ms" else "at least"
        shown = f"{finding.value:.2f} {finding.unit} ({finding.low:.2f}..{finding.high:.2f}), {sign} {finding.limit:.2f}"
    why = "" if finding.outcome is Outcome.PASS else f": {finding.reason}"
    return f"{finding.about}: {shown}: {finding.outcome}{why}"
