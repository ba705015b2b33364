"""Sealed folders: every way to tamper with one is named, and nothing is half-written."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optbench.artifact import folder as artifact
from optbench.artifact.folder import Artifact, copy_companions, hash_file, open_artifact, read_manifest_sha256, seal
from optbench.artifact.manifest import MANIFEST, Kind, Weights
from optbench.errors import ArtifactError, MachineError

FILES = {"model.safetensors": b"weights" * 100, "config.json": b"{}", "1_Pooling/config.json": b'{"pooling": 1}'}


def fill(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def sealed(tmp_path: Path) -> Artifact:
    return seal(fill(tmp_path / "staging"), tmp_path / "sealed", Kind.CHECKPOINT, "real")


def rewrite_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((folder / MANIFEST).read_bytes())
    change(document)
    (folder / MANIFEST).write_text(json.dumps(document, sort_keys=True, indent=1) + "\n")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Sealing.


def test_sealed_folder_opens_as_what_was_sealed(sealed: Artifact, tmp_path: Path) -> None:
    assert open_artifact(sealed.path) == sealed
    assert not (tmp_path / "staging").exists()
    assert sealed.main_file.read_bytes() == FILES["model.safetensors"]
    assert sealed.size_bytes == sum(map(len, FILES.values()))
    assert sealed.sha256 == hash_file(sealed.path / MANIFEST) == read_manifest_sha256(sealed.path)


def test_same_bytes_give_the_same_hash_and_other_weights_another(tmp_path: Path) -> None:
    def hash_of(files: dict[str, bytes], weights: Weights) -> str:
        return seal(fill(tmp_path / "staging", files), tmp_path / "sealed", Kind.CHECKPOINT, weights).sha256

    assert hash_of(FILES, "real") == hash_of(FILES, "real")
    assert len({hash_of(FILES, "real"), hash_of(FILES, "random"), hash_of({**FILES, "config.json": b"[]"}, "real")}) == 3


@pytest.mark.parametrize("kind", list(Kind))
def test_folder_without_its_kinds_main_file_is_not_sealed(tmp_path: Path, kind: Kind) -> None:
    with pytest.raises(ArtifactError, match=f"has no {kind.main_file}, which every {kind} artifact needs"):
        seal(fill(tmp_path / "staging", {"config.json": b"{}"}), tmp_path / "sealed", kind, "real")
    assert not (tmp_path / "sealed").exists()


def test_link_is_not_sealed(tmp_path: Path) -> None:
    staging = fill(tmp_path / "staging")
    (staging / "vocab.txt").symlink_to("/etc/hostname")
    with pytest.raises(ArtifactError, match=r"vocab\.txt: a link; an artifact holds regular files only"):
        seal(staging, tmp_path / "sealed", Kind.CHECKPOINT, "real")


def test_pipe_is_not_sealed(tmp_path: Path) -> None:
    staging = fill(tmp_path / "staging")
    os.mkfifo(staging / "vocab.txt")
    with pytest.raises(ArtifactError, match=r"vocab\.txt: neither a file nor a folder"):
        seal(staging, tmp_path / "sealed", Kind.CHECKPOINT, "real")


def seal_again(tmp_path: Path) -> Artifact:
    return seal(fill(tmp_path / "again", {"model.safetensors": b"new"}), tmp_path / "sealed", Kind.CHECKPOINT, "real")


def test_folder_already_there_is_replaced_whole(sealed: Artifact, tmp_path: Path) -> None:
    seal_again(tmp_path)
    assert contents(sealed.path).keys() == {MANIFEST, "model.safetensors"}
    assert [path.name for path in tmp_path.iterdir()] == ["sealed"]


def test_replacing_never_leaves_the_place_empty(sealed: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(self: Path, target: Path) -> None:
        raise AssertionError(f"{self} renamed to {target}: a crash before the next rename would lose the artifact")

    monkeypatch.setattr(Path, "rename", rename)
    assert open_artifact(seal_again(tmp_path).path).main_file.read_bytes() == b"new"


def test_file_system_that_cannot_swap_still_replaces(sealed: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "_exchange", lambda one, other: False)
    assert open_artifact(seal_again(tmp_path).path).main_file.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["sealed"]


@pytest.mark.parametrize("swaps", [True, False])
def test_failed_rename_leaves_the_destination_as_it_was(
    sealed: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool
) -> None:
    rename = Path.rename

    def fail(one: Path, other: Path) -> bool:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    def fail_from_staging(self: Path, target: Path) -> Path:
        return Path("unreachable") if self.name == "again" and fail(self, target) else rename(self, target)

    monkeypatch.setattr(artifact, "_exchange", fail if swaps else lambda one, other: False)
    monkeypatch.setattr(Path, "rename", fail_from_staging)
    before = contents(sealed.path)
    with pytest.raises(MachineError, match="cannot be written: Invalid cross-device link; make the folder writable"):
        seal_again(tmp_path)
    assert contents(sealed.path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "sealed"]


def test_full_disk_leaves_the_destination_as_it_was(sealed: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    before = contents(sealed.path)
    with pytest.raises(MachineError, match="cannot be written: No space left on device; free some space and run again"):
        seal_again(tmp_path)
    assert contents(sealed.path) == before


def test_file_in_the_place_of_the_folder_is_an_error_and_stays(tmp_path: Path) -> None:
    (tmp_path / "sealed").write_text("precious")
    with pytest.raises(MachineError, match="Not a directory"):
        seal_again(tmp_path)
    assert (tmp_path / "sealed").read_text() == "precious"


# Opening.


def flip(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[50] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def move_behind_a_link(path: Path) -> None:
    away = path.rename(path.parent.parent / "away")
    path.symlink_to(away)


def replace_by_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


TAMPERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped bit": (flip, "model.safetensors has changed since it was sealed"),
    "truncated": (lambda folder: os.truncate(folder / "model.safetensors", 10), "model.safetensors has 10 bytes, not 700"),
    "missing": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    "extra": (lambda folder: (folder / "evil.py").write_text("1"), "evil.py is not in the manifest"),
    "renamed": (
        lambda folder: (folder / "config.json").rename(folder / "other.json"),
        "config.json is missing; other.json is not in the manifest",
    ),
    "file behind a link": (lambda folder: move_behind_a_link(folder / "config.json"), "config.json: a link"),
    "folder behind a link": (lambda folder: move_behind_a_link(folder / "1_Pooling"), "1_Pooling: a link"),
    "pipe": (lambda folder: replace_by_a_pipe(folder / "config.json"), "config.json: neither a file nor a folder"),
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), "manifest.json: No such file or directory; an artifact folder holds a"),
    "manifest is a pipe": (lambda folder: replace_by_a_pipe(folder / MANIFEST), "manifest.json: not a regular file"),
    "manifest behind a link": (lambda folder: move_behind_a_link(folder / MANIFEST), "manifest.json: not a regular file"),
    "manifest is a folder": (lambda folder: replace_by_a_folder(folder / MANIFEST), "manifest.json: not a regular file"),
    "manifest is giant": (lambda folder: os.truncate(folder / MANIFEST, 5 * 2**20), "larger than 4194304 bytes, which no manifest is"),
    "manifest is cut": (lambda folder: os.truncate(folder / MANIFEST, 100), "manifest.json: broken at 'top': Invalid JSON"),
    "manifest is not text": (lambda folder: (folder / MANIFEST).write_bytes(b"\xff\xfe"), "manifest.json: broken at 'top': Invalid JSON"),
    "folder is gone": (shutil.rmtree, "No such file or directory"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_tampered_folder_is_refused_with_the_file_named(sealed: Artifact, case: str) -> None:
    tamper, message = TAMPERED[case]
    tamper(sealed.path)
    with pytest.raises(ArtifactError) as caught:
        open_artifact(sealed.path)
    assert message in str(caught.value)


@pytest.mark.parametrize("case", ["truncated", "missing", "extra", "renamed", "file behind a link"])
def test_all_but_changed_bytes_is_seen_without_hashing(sealed: Artifact, case: str) -> None:
    tamper, message = TAMPERED[case]
    tamper(sealed.path)
    with pytest.raises(ArtifactError) as caught:
        open_artifact(sealed.path, verify=False)
    assert message in str(caught.value)


def test_unverified_opening_does_not_read_the_weights(sealed: Artifact) -> None:
    flip(sealed.path)
    assert open_artifact(sealed.path, verify=False) == sealed


@pytest.mark.parametrize(
    "name",
    [
        "../escape",
        "/etc/passwd",
        "a/../../b",
        "a\\b",
        "a\0b",
        "./config.json",
        "a//b",
        "a/",
        "",
        ".",
        "red\x1b[31m",
        "line\nbreak",
        "\u202eotx",
    ],
)
def test_manifest_that_lists_no_plain_path_is_refused(sealed: Artifact, name: str) -> None:
    rewrite_manifest(sealed.path, lambda document: document["files"].update({name: {"sha256": "0" * 64, "size_bytes": 0}}))
    with pytest.raises(ArtifactError) as caught:
        open_artifact(sealed.path)
    assert "not a plain path inside the folder; do not use this artifact" in str(caught.value)
    assert str(caught.value).isprintable(), "a terminal would obey what the name says"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document.update(schema_version=2), "broken at 'schema_version'"),
        (lambda document: document.update(kind="pickle"), "broken at 'kind'"),
        (lambda document: document.update(weights="stolen"), "broken at 'weights'"),
        (lambda document: document.update(extra=1), "broken at 'extra'"),
        (lambda document: document.pop("files"), "broken at 'files'"),
        (lambda document: document["files"]["config.json"].update(sha256="Z" * 64), "broken at 'files.config.json.sha256'"),
        (lambda document: document["files"]["config.json"].update(size_bytes=-1), "broken at 'files.config.json.size_bytes'"),
        (lambda document: document["files"].update({"\x1b[2J": 1}), r"broken at 'files.\x1b[2J'"),
    ],
)
def test_broken_manifest_is_refused_with_the_place_named(sealed: Artifact, change: Callable[[Any], object], message: str) -> None:
    rewrite_manifest(sealed.path, change)
    with pytest.raises(ArtifactError) as caught:
        open_artifact(sealed.path)
    assert message in str(caught.value)


def test_manifest_of_another_kind_than_the_files_is_refused(sealed: Artifact) -> None:
    rewrite_manifest(sealed.path, lambda document: document.update(kind="onnx"))
    with pytest.raises(ArtifactError, match=r"its kind is onnx, but it holds no onnx/model\.onnx"):
        open_artifact(sealed.path)


def test_manifest_that_says_the_same_in_other_bytes_is_refused(sealed: Artifact) -> None:
    path = sealed.path / MANIFEST
    twice = path.read_text().replace('"kind"', '"weights": "random",\n "kind"', 1)
    assert json.loads(twice) == json.loads(path.read_text())
    for content in (twice, path.read_text() + "\n"):
        path.write_text(content)
        with pytest.raises(ArtifactError, match="differs from how optbench writes a manifest"):
            open_artifact(sealed.path)


def test_many_problems_are_counted_and_not_all_listed(sealed: Artifact) -> None:
    fill(sealed.path, {f"extra{index:02}": b"" for index in range(15)})
    with pytest.raises(ArtifactError, match=r"extra09 is not in the manifest; and 5 more; make the artifact again"):
        open_artifact(sealed.path)


def test_file_that_cannot_be_read_is_an_error_and_no_bug(sealed: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(path: Path) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(artifact, "hash_file", unreadable)
    with pytest.raises(ArtifactError, match="cannot be read: Permission denied; make it readable"):
        open_artifact(sealed.path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
entries = st.fixed_dictionaries({"sha256": st.text(), "size_bytes": st.integers() | json_values})
manifests = st.fixed_dictionaries(
    {
        "schema_version": st.just(1),
        "kind": st.sampled_from(["checkpoint", "onnx", "openvino"]),
        "weights": st.sampled_from(["real", "random"]),
        "files": st.dictionaries(st.text() | st.sampled_from(["../x", "/x", "model.safetensors"]), entries | json_values, max_size=3),
    }
)


@given(st.binary() | (json_values | manifests).map(lambda value: json.dumps(value).encode()))
def test_whatever_a_manifest_says_only_an_artifact_error_comes_out(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = fill(Path(name))
        (folder / MANIFEST).write_bytes(content)
        with pytest.raises(ArtifactError):
            open_artifact(folder)


@given(st.data())
def test_a_changed_byte_of_a_real_manifest_is_an_artifact_error_or_changes_the_hash(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        made = seal(fill(Path(name) / "staging"), Path(name) / "sealed", Kind.CHECKPOINT, "real")
        content = bytearray((made.path / MANIFEST).read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        changed = bytes(content) != (made.path / MANIFEST).read_bytes()
        (made.path / MANIFEST).write_bytes(content)
        try:
            opened = open_artifact(made.path)
        except ArtifactError:
            return
        assert (opened.sha256 != made.sha256) == changed


# Companions.


def test_companions_are_copied_without_weights_graphs_and_manifest(tmp_path: Path) -> None:
    companions = {"config.json", "tokenizer.json", "1_Pooling/config.json", "sentencepiece.bpe.model", "vocab.txt"}
    weights = {
        "model.safetensors",
        "pytorch_model.bin",
        "onnx/model.onnx",
        "onnx/model.onnx_data",
        "openvino/openvino_model.xml",
        "old.ckpt",
    }
    made = seal(fill(tmp_path / "staging", dict.fromkeys(companions | weights, b"x")), tmp_path / "sealed", Kind.CHECKPOINT, "real")
    copy_companions(made.path, tmp_path / "out", leave_out=["vocab.txt"])
    assert contents(tmp_path / "out").keys() == companions - {"vocab.txt"}


def test_missing_manifest_has_no_hash(tmp_path: Path) -> None:
    assert read_manifest_sha256(tmp_path) is None
