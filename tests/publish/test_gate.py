"""What may be published: verified bytes, measured, passing, under a licence that allows it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from optbench.publish import clear, license_problem
from optbench.record.verdict import Outcome


def test_passing_artifact_with_a_record_of_its_bytes_may_be_published(exported: Path) -> None:
    found = clear(exported)
    assert found.reasons == ()
    assert found.outcome is Outcome.PASS
    assert found.record in {path.name for path in (exported / "records").iterdir()}


def test_failing_verdict_stands_against_it_whatever_is_allowed(make_exported: Callable[..., Path]) -> None:
    found = clear(make_exported(candidate_ms=80.0), allow_inconclusive=True)
    assert found.outcome is Outcome.FAIL
    assert "its verdict is fail" in found.reasons[0]
    assert not found.inconclusive


def test_inconclusive_verdict_is_published_only_when_that_is_said(make_exported: Callable[..., Path]) -> None:
    folder = make_exported(candidate_ms=40.0, spread=0.3)
    found = clear(folder)
    assert found.outcome is Outcome.INCONCLUSIVE
    assert found.inconclusive
    assert "--allow-inconclusive" in found.reasons[0]
    assert clear(folder, allow_inconclusive=True).reasons == ()


def test_random_weights_are_never_published(make_exported: Callable[..., Path]) -> None:
    found = clear(make_exported(weights="random"), allow_inconclusive=True)
    assert found.reasons == ("its weights are random: it embeds nothing",)


def test_record_of_other_bytes_does_not_count(make_exported: Callable[..., Path]) -> None:
    from optbench.artifact.folder import MANIFEST, Kind, seal

    folder = make_exported()
    # Somebody changes the model and seals it again: the record is still there, and is not of this.
    (folder / "1_Pooling" / "config.json").write_text((folder / "1_Pooling" / "config.json").read_text() + "\n")
    (folder / MANIFEST).unlink()
    staging = folder.rename(folder.parent / "staging")
    seal(staging, folder, Kind.OPENVINO, "real")
    assert "none of its records is of these bytes" in clear(folder).reasons[0]


def test_damaged_artifact_is_refused_with_the_file_named(exported: Path) -> None:
    (exported / "config.json").write_text("{}")
    assert any("config.json has 2 bytes" in reason for reason in clear(exported).reasons)


def test_license_of_the_base_stands_against_it(make_exported: Callable[..., Path]) -> None:
    found = clear(make_exported(license="CC-BY-NC-ND-4.0"), license_checked=True)
    assert "CC-BY-NC-ND-4.0 forbids passing on changed copies" in found.reasons[0]


@pytest.mark.parametrize(
    "expression",
    [
        "MIT",
        "Apache-2.0",
        "apache-2.0",
        "CC-BY-4.0",
        "CC-BY-NC-4.0",
        "CC-BY-SA-4.0",
        "MIT AND Apache-2.0",
        "GPL-3.0-only WITH x",
        "Unknown-1 OR MIT",
    ],
)
def test_licenses_that_allow_changed_copies(expression: str) -> None:
    assert license_problem(expression) is None


@pytest.mark.parametrize("expression", ["CC-BY-ND-4.0", "CC-BY-NC-ND-4.0", "cc-by-nd-4.0", "MIT AND CC-BY-ND-4.0"])
def test_licenses_that_forbid_changed_copies_cannot_be_talked_past(expression: str) -> None:
    assert "forbids passing on changed copies" in str(license_problem(expression, checked=True))


@pytest.mark.parametrize("expression", ["NOASSERTION", "NONE", "LicenseRef-own", "MIT AND LicenseRef-own", "MITX", "CC-BY-NC"])
def test_unknown_license_needs_somebody_to_read_it(expression: str) -> None:
    assert "--license-checked" in str(license_problem(expression))
    assert license_problem(expression, checked=True) is None
