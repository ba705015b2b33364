"""May this artifact be published? Verified bytes, measurements of these very bytes, a verdict that passes, a licence that allows it."""

import re
from collections.abc import Iterable
from pathlib import Path

from optbench.artifact.folder import open_artifact
from optbench.errors import PublishError
from optbench.machine.frozen import Frozen
from optbench.record.audit import audit, matching_record
from optbench.record.record import Record
from optbench.record.verdict import Outcome, judge

__all__ = ["Clearance", "clear", "license_problem"]

# SPDX identifiers under which a changed copy, which a quantized model is, may be passed on. From the SPDX licence list 3.27
# and the licences that model hubs list; `*` stands for versions.
PASS_ON = (
    *("Apache-*", "MIT", "MIT-0", "BSD-*", "ISC", "Zlib", "Unlicense", "0BSD", "BSL-1.0", "MPL-*", "EPL-*", "Artistic-*", "AFL-*"),
    *("GPL-*", "LGPL-*", "AGPL-*", "EUPL-*", "CC0-*", "CC-BY-[0-9]*", "CC-BY-SA-*", "CC-BY-NC-[0-9]*", "CC-BY-NC-SA-*", "PDDL-*"),
    *("ODC-By-*", "ODbL-*", "CDLA-*", "OpenRAIL*", "CreativeML-OpenRAIL-*", "BigScience-*", "ECL-*", "UPL-*", "MS-PL", "WTFPL", "NCSA"),
)
NO_CHANGED_COPIES = re.compile(r"CC-BY-(NC-)?ND-.*", re.IGNORECASE)


class Clearance(Frozen):
    """What stands against publishing.

    Attributes:
        outcome: of the verdict; not judged where no record is of these bytes.
        record: the record's file name.
        reasons: why it may not be published; none where it may.
        inconclusive: whether the verdict alone, being inconclusive, stands against it.
    """

    outcome: Outcome
    record: str | None
    reasons: tuple[str, ...]
    inconclusive: bool = False


def license_problem(expression: str, *, checked: bool = False) -> str | None:
    """Why a licence keeps its model from being published in another form, if it does.

    Args:
        expression: SPDX; of alternatives (OR) one is enough, of joined licences (AND) all must allow it.
        checked: somebody has read a licence that is not on the list, and it allows it.
    """
    alternatives = [_all_of(part.split(" AND "), checked) for part in expression.split(" OR ")]
    return None if None in alternatives else alternatives[0]


def _all_of(licenses: Iterable[str], checked: bool) -> str | None:
    for name in (each.strip().partition(" WITH ")[0] for each in licenses):
        if NO_CHANGED_COPIES.fullmatch(name):
            return f"the base's licence {name} forbids passing on changed copies, and this is one: keep it to yourself"
        if not checked and not any(_matches(name, pattern) for pattern in PASS_ON):
            return (
                f"the base's licence {name} is not on optbench's list: read it, and if changed copies may be passed on, --license-checked"
            )
    return None


def _matches(name: str, pattern: str) -> bool:
    return re.fullmatch(pattern.replace(".", r"\.").replace("*", ".*"), name, re.IGNORECASE) is not None


def clear(folder: Path, *, allow_inconclusive: bool = False, license_checked: bool = False) -> Clearance:
    """Look for what stands against publishing a folder.

    Args:
        folder: the artifact.
        allow_inconclusive: publish although the verdict is inconclusive.
        license_checked: see `license_problem`.
    """
    found = audit(folder)
    if found.problems:
        return Clearance(outcome=Outcome.NOT_JUDGED, record=None, reasons=found.problems)
    record = matching_record(folder, open_artifact(folder, verify=False).manifest)
    if record is None:
        missing = f"{folder}: none of its records is of these bytes; optbench apply RECIPE measures and exports in one"
        return Clearance(outcome=Outcome.NOT_JUDGED, record=None, reasons=(missing,))
    reasons = []
    if record.weights == "random" or found.weights == "random":
        reasons.append("its weights are random: it embeds nothing")
    outcome = judge(record).outcome
    held_back = outcome not in (Outcome.PASS, Outcome.FAIL) and not allow_inconclusive
    if outcome is Outcome.FAIL:
        reasons.append(f"its verdict is fail ({record.file_name}); optbench report {folder} shows on what")
    if held_back:
        reasons.append(f"its verdict is {outcome} ({record.file_name}); measure longer, or say --allow-inconclusive")
    if problem := license_problem(record.recipe.base.license, checked=license_checked):
        reasons.append(problem)
    return Clearance(outcome=outcome, record=record.file_name, reasons=tuple(reasons), inconclusive=held_back and len(reasons) == 1)


def published_record(folder: Path) -> Record:
    """The record that a cleared folder was cleared by."""
    record = matching_record(folder, open_artifact(folder, verify=False).manifest)
    if record is None:
        raise PublishError(f"{folder}: has changed while it was published; leave it alone, and run again")
    return record
