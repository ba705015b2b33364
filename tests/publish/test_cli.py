"""verify, publish and pull on the command line: what they print, where, and how they exit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from typer.testing import CliRunner, Result

from optbench import cli
from optbench.artifact.folder import open_artifact
from optbench.artifact.manifest import Kind
from optbench.errors import PublishError
from tests.cli.test_json import check_keys
from tests.publish.test_filesystem import contents, flip_byte


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(each) for each in arguments], catch_exceptions=False)


def document(result: Result) -> dict[str, Any]:
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def test_publish_pull_and_verify_with_their_documents(exported: Path, tmp_path: Path) -> None:
    planned = document(run("publish", exported, tmp_path / "there", "--dry-run", "--json"))
    assert not (tmp_path / "there").exists()
    done = document(run("publish", exported, tmp_path / "there", "--json"))
    assert planned["published"]["sent"] == done["published"]["sent"]
    pulled = document(run("pull", tmp_path / "there", tmp_path / "back", "--json"))
    verified = document(run("verify", tmp_path / "back", "--json"))
    assert verified["sha256"] == pulled["sha256"] == done["published"]["sha256"] == open_artifact(exported).sha256
    assert verified["measured"] == done["record"]
    for command, each in (("publish", done), ("pull", pulled), ("verify", verified)):
        check_keys(command, each)
    assert contents(tmp_path / "back") == contents(exported)


def test_second_publish_says_that_all_is_there(exported: Path, tmp_path: Path) -> None:
    assert "sent config.json" in run("publish", exported, tmp_path / "there").stdout
    again = run("publish", exported, tmp_path / "there")
    assert again.exit_code == 0
    assert "everything is already there" in again.stdout


def test_damaged_destination_is_repaired_and_said(exported: Path, tmp_path: Path) -> None:
    run("publish", exported, tmp_path / "there")
    flip_byte(tmp_path / "there" / "config.json")
    assert "would send config.json\n" in run("publish", exported, tmp_path / "there", "--dry-run").stdout
    repaired = document(run("publish", exported, tmp_path / "there", "--repair", "--json"))["published"]
    assert repaired["sent"] == ["config.json"]
    again = run("publish", exported, tmp_path / "there", "--repair").stdout
    assert again.startswith("everything is already there, byte for byte\n")


def test_store_that_was_compared_by_size_says_so(exported: Path) -> None:
    address = "memory://compared/there"
    run("publish", exported, address)
    assert "everything is already there, by name and size; --repair compares every byte" in run("publish", exported, address).stdout
    fsspec.filesystem("memory").pipe_file("/compared/there/config.json", b"[" * (exported / "config.json").stat().st_size)
    assert "sent config.json, which was damaged there" in run("publish", exported, address, "--repair").stdout


def test_repair_of_a_pull_request_is_refused(exported: Path) -> None:
    refused = run("publish", exported, "hf://team/model", "--repair", "--pull-request")
    assert refused.exit_code == 2
    assert "cannot be combined with --pull-request" in refused.stderr


def test_dry_run_looks_at_the_key_before_the_artifact(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optbench.publish.clear", lambda *_, **__: pytest.fail("the artifact came first"))
    with pytest.raises(PublishError, match=r"missing\.key: cannot use the secret key: No such file"):
        run("publish", exported, tmp_path / "there", "--dry-run", "--sign", tmp_path / "missing.key")


def test_refusals_exit_as_the_verdict_does(make_exported: Callable[..., Path], tmp_path: Path) -> None:
    failing, unsure = make_exported("a", candidate_ms=80.0), make_exported("b", candidate_ms=40.0, spread=0.3)
    forbidden = make_exported("c", license="CC-BY-ND-4.0")
    for folder, status, words in (
        (failing, 1, "its verdict is fail"),
        (unsure, 3, "--allow-inconclusive"),
        (forbidden, 2, "does not allow sharing"),
    ):
        refused = run("publish", folder, tmp_path / "there")
        assert refused.exit_code == status
        assert words in refused.stderr
        as_json = document(run("publish", folder, tmp_path / "there", "--json"))
        assert as_json["published"] is None
        assert len(as_json["reasons"]) == 1
    assert not (tmp_path / "there").exists()
    assert run("publish", unsure, tmp_path / "there", "--allow-inconclusive").exit_code == 0


def test_verify_exits_1_and_names_every_problem(exported: Path) -> None:
    names = ["config.json", "modules.json", "tokenizer.json"]
    for name in names:
        (exported / name).unlink()
    (exported / "extra").write_text("")
    found = run("verify", exported)
    assert found.exit_code == 1
    for name in names:
        assert f"{name} is missing" in found.stderr
    assert "extra is not in the manifest" in found.stderr
    assert len(document(run("verify", exported, "--json"))["problems"]) == 4


def test_verify_checks_the_hash_and_the_key_that_are_asked_for(exported: Path) -> None:
    other = run("verify", exported, "--sha256", "0" * 64)
    assert other.exit_code == 1
    assert f"expected {'0' * 64}" in other.stderr
    unsigned = run("verify", exported, "--public-key", "RWQ" + "A" * 53)
    assert unsigned.exit_code == 1
    assert "not signed" in unsigned.stderr or "not a minisign public key" in unsigned.stderr


def test_verify_counts_problems_in_the_singular_and_the_plural(exported: Path) -> None:
    assert ", 0 problems" in run("verify", exported).stderr
    (exported / "extra").write_text("")
    assert ", 1 problem\n" in run("verify", exported).stderr
    (exported / "another").write_text("")
    assert ", 2 problems\n" in run("verify", exported).stderr


def test_verify_of_no_artifact_exits_1_and_says_what_one_is(tmp_path: Path) -> None:
    found = run("verify", tmp_path)
    assert found.exit_code == 1
    assert "manifest.json: No such file or directory" in found.stderr


def test_extend_writes_a_copy_with_both_graphs(make_exported: Callable[..., Path], tmp_path: Path) -> None:
    made = document(run("extend", make_exported(kind=Kind.ONNX), tmp_path / "both", "--json"))
    check_keys("extend", made)
    assert open_artifact(tmp_path / "both").sha256 == made["sha256"]
    # What was added changes nothing about what was measured.
    assert run("publish", tmp_path / "both", tmp_path / "there").exit_code == 0
