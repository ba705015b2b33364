"""Whether an artifact may be published: intact files, a record of exactly these files, a passing verdict, a license that allows it."""

from pathlib import Path

from optbench.artifact.folder import open_artifact
from optbench.base.license import sharing_problem
from optbench.errors import PublishError
from optbench.machine.frozen import Frozen
from optbench.record.audit import audit, matching_record
from optbench.record.record import Record
from optbench.record.verdict import Outcome, judge

__all__ = ["Clearance", "clear"]


class Clearance(Frozen):
    """Whether an artifact may be published.

    Attributes:
        outcome: the verdict's; not judged if no record belongs to these files.
        reasons: why it may not be published; empty if it may.
        inconclusive: whether the only reason is an inconclusive verdict.
    """

    outcome: Outcome
    record: str | None
    reasons: tuple[str, ...]
    inconclusive: bool = False


def clear(folder: Path, *, allow_inconclusive: bool = False, license_checked: bool = False) -> Clearance:
    """Check whether a folder may be published. `license_checked` accepts a license that optbench does not know."""
    found = audit(folder)
    if found.problems:
        return Clearance(outcome=Outcome.NOT_JUDGED, record=None, reasons=found.problems)
    record = matching_record(folder, open_artifact(folder, verify=False).manifest)
    if record is None:
        missing = f"{folder}: none of its records has its sha256; export it with optbench apply RECIPE"
        return Clearance(outcome=Outcome.NOT_JUDGED, record=None, reasons=(missing,))
    reasons = []
    if record.weights == "random" or found.weights == "random":
        reasons.append("its weights are random, so its embeddings are meaningless")
    outcome = judge(record).outcome
    held_back = outcome not in (Outcome.PASS, Outcome.FAIL) and not allow_inconclusive
    if outcome is Outcome.FAIL:
        reasons.append(f"its verdict is fail ({record.file_name}); optbench report {folder} shows which target it missed")
    if held_back:
        reasons.append(f"its verdict is {outcome} ({record.file_name}); measure with more rounds, or give --allow-inconclusive")
    if problem := sharing_problem(record.recipe.base.license, checked=license_checked):
        reasons.append(problem)
    return Clearance(outcome=outcome, record=record.file_name, reasons=tuple(reasons), inconclusive=held_back and len(reasons) == 1)


def published_record(folder: Path) -> Record:
    """The record that `clear` has found for a folder.

    Raises:
        PublishError: the folder has changed since.
    """
    record = matching_record(folder, open_artifact(folder, verify=False).manifest)
    if record is None:
        raise PublishError(f"{folder}: changed during publication; run again")
    return record
