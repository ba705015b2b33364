"""What may be published: verified bytes, measured, passing, under a license that allows it."""

from collections.abc import Callable
from pathlib import Path

from optbench.publish import clear
from optbench.record.verdict import Outcome


def test_passing_artifact_with_a_record_of_its_bytes_may_be_published(exported: Path) -> None:
    found = clear(exported)
    assert found.reasons == ()
    assert found.outcome is Outcome.PASS
    assert found.record in {path.name for path in (exported / "records").iterdir()}


def test_failing_verdict_forbids_publication_whatever_is_allowed(make_exported: Callable[..., Path]) -> None:
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
    assert found.reasons == ("its weights are random, so its embeddings are meaningless",)


def test_record_of_other_bytes_does_not_count(make_exported: Callable[..., Path]) -> None:
    from optbench.artifact.folder import seal
    from optbench.artifact.manifest import MANIFEST, Kind

    folder = make_exported()
    # Somebody changes the model and seals it again: the record is still there, and is not of this.
    (folder / "1_Pooling" / "config.json").write_text((folder / "1_Pooling" / "config.json").read_text() + "\n")
    (folder / MANIFEST).unlink()
    staging = folder.rename(folder.parent / "staging")
    seal(staging, folder, Kind.OPENVINO, "real")
    assert "none of its records has its sha256" in clear(folder).reasons[0]


def test_damaged_artifact_is_refused_with_the_file_named(exported: Path) -> None:
    (exported / "config.json").write_text("{}")
    assert any("config.json has 2 bytes" in reason for reason in clear(exported).reasons)


def test_license_of_the_base_forbids_publication(make_exported: Callable[..., Path]) -> None:
    found = clear(make_exported(license="CC-BY-NC-ND-4.0"), license_checked=True)
    assert "CC-BY-NC-ND-4.0, does not allow sharing modified copies" in found.reasons[0]
