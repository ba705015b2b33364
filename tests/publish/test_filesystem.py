"""Publishing to folders and fsspec addresses, and pulling from them."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from optbench.artifact.folder import open_artifact
from optbench.artifact.manifest import MANIFEST
from optbench.errors import ArtifactError, MissingExtraError, PublishError
from optbench.publish import open_destination, publish, pull
from optbench.publish.filesystem import JOURNAL
from tests.publish.conftest import silent


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(params=["folder", "file", "memory"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Each kind of address, empty."""
    yield {"folder": str(tmp_path / "there"), "file": f"file://{tmp_path}/there", "memory": "memory://bucket/there"}[request.param]
    fsspec.filesystem("memory").store.clear()


def test_what_is_pulled_is_byte_for_byte_what_was_published(exported: Path, address: str, tmp_path: Path) -> None:
    published = publish(exported, open_destination(address), silent)
    assert set(published.sent) == contents(exported).keys()
    pulled = pull(open_destination(address), tmp_path / "back", silent)
    assert contents(tmp_path / "back") == contents(exported)
    assert pulled.sha256 == published.sha256 == open_artifact(tmp_path / "back").sha256
    assert [path.name for path in tmp_path.iterdir() if "pulling" in path.name] == []


def test_second_publication_sends_nothing_and_second_pull_fetches_nothing(exported: Path, address: str, tmp_path: Path) -> None:
    publish(exported, open_destination(address), silent)
    assert publish(exported, open_destination(address), silent).sent == ()
    pull(open_destination(address), tmp_path / "back", silent)
    assert pull(open_destination(address), tmp_path / "back", silent).fetched_bytes == 0


def test_dry_run_says_what_would_go_and_sends_nothing(exported: Path, address: str) -> None:
    planned = publish(exported, open_destination(address), silent, dry_run=True)
    assert planned.dry_run
    assert open_destination(address).read(MANIFEST, 1 << 20) is None
    assert publish(exported, open_destination(address), silent).sent == planned.sent


def test_cut_publication_goes_on_with_the_file_that_was_cut(
    exported: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = open_destination(address)
    real = target._fs.put_file  # type: ignore[attr-defined]
    sent: list[str] = []

    def cut(local: str, remote: str, **options: object) -> None:
        if len(sent) == 5:
            with fsspec.open(address.rstrip("/") + "/" + Path(local).relative_to(exported).as_posix(), "wb") as file:
                file.write(Path(local).read_bytes()[:-1])
            raise ConnectionResetError("cut")
        real(local, remote, **options)
        sent.append(Path(local).relative_to(exported).as_posix())

    monkeypatch.setattr(target._fs, "put_file", cut)  # type: ignore[attr-defined]
    with pytest.raises(PublishError, match="publishing stopped: cut; fix that and run again"):
        publish(exported, target, silent)
    monkeypatch.undo()
    with pytest.raises(PublishError, match="nothing is published there"):
        pull(open_destination(address), tmp_path / "early", silent)
    rest = publish(exported, open_destination(address), silent)
    assert set(rest.sent) == contents(exported).keys() - set(sent)
    pull(open_destination(address), tmp_path / "back", silent)
    assert contents(tmp_path / "back") == contents(exported)
    assert open_destination(address).read(JOURNAL, 1 << 20) is None


def test_newer_artifact_replaces_the_older_and_sends_only_what_differs(
    make_exported: Callable[..., Path], address: str, tmp_path: Path
) -> None:
    old, new = make_exported(), make_exported("newer", created="2026-11-25T12:00:00Z")
    publish(old, open_destination(address), silent)
    sent = publish(new, open_destination(address), silent).sent
    assert sent
    assert not any(name.startswith("openvino/") for name in sent)
    pull(open_destination(address), tmp_path / "back", silent)
    assert contents(tmp_path / "back") == contents(new)


def test_folder_with_other_things_in_it_is_left_alone(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "thesis.tex").write_text("years of work")
    with pytest.raises(PublishError, match=r"contains files that optbench did not publish \(thesis.tex\); choose an empty folder"):
        publish(exported, open_destination(str(tmp_path / "there")), silent)
    assert contents(tmp_path / "there") == {"thesis.tex": b"years of work"}


def test_cut_pull_goes_on_at_the_byte_where_it_was_cut(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_destination(str(exported))
    whole = source.download

    def cut(name: str, entry: object, file: object, report: Callable[[int], None]) -> None:
        if name.endswith(".bin"):
            file.write((exported / name).read_bytes()[:100])  # type: ignore[attr-defined]
            raise PublishError("cut")
        whole(name, entry, file, report)  # type: ignore[arg-type]

    monkeypatch.setattr(source, "download", cut)
    with pytest.raises(PublishError, match="cut"):
        pull(source, tmp_path / "back", silent)
    assert not (tmp_path / "back").exists()
    came = sum(path.stat().st_size for path in (tmp_path / ".back.pulling").rglob("*") if path.is_file())
    pulled = pull(open_destination(str(exported)), tmp_path / "back", silent)
    assert pulled.fetched_bytes == open_artifact(exported).size_bytes - came
    assert contents(tmp_path / "back") == contents(exported)


@pytest.mark.parametrize("name", ["config.json", "openvino/openvino_model.bin"])
def test_changed_byte_at_the_source_never_arrives(exported: Path, tmp_path: Path, name: str) -> None:
    content = bytearray((exported / name).read_bytes())
    content[len(content) // 2] ^= 1
    shutil.copytree(exported, tmp_path / "source")
    (tmp_path / "source" / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name}: sha256 is [0-9a-f]*, but its manifest says [0-9a-f]*; the download was deleted"):
        pull(open_destination(str(tmp_path / "source")), tmp_path / "back", silent)
    assert not (tmp_path / "back").exists()


def test_truncated_file_at_the_source_is_named(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "source")
    path = tmp_path / "source" / "openvino" / "openvino_model.bin"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(PublishError, match=r"openvino_model.bin: ended after \d+ of \d+ bytes; run again to resume"):
        pull(open_destination(str(tmp_path / "source")), tmp_path / "back", silent)


def test_folder_that_is_there_is_not_overwritten(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "back").mkdir()
    with pytest.raises(PublishError, match="exists and is not this artifact; choose another folder"):
        pull(open_destination(str(exported)), tmp_path / "back", silent)


def test_other_hash_than_the_one_asked_for_is_refused(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(PublishError, match=f"sha256 is [0-9a-f]*, expected {'0' * 64}; do not use it"):
        pull(open_destination(str(exported)), tmp_path / "back", silent, sha256="0" * 64)


@pytest.mark.parametrize(("scheme", "library", "extra"), [("s3", "s3fs", "s3"), ("gs", "gcsfs", "gcs")])
def test_missing_library_is_named_with_the_extra_that_installs_it(
    scheme: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optbench.machine.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        open_destination(f"{scheme}://key:secret@bucket/x?token=t")
    expected = f"{scheme}://bucket/x needs {library}, which is not installed; run pip install 'optbench[{extra}]'"
    assert str(caught.value) == expected


@pytest.mark.parametrize("address", ["s3://", "s3:///folder", "gs://", "az://"])
def test_address_without_its_bucket_is_refused_before_a_library_is_needed(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optbench.machine.extras.find_spec", lambda name: None)
    with pytest.raises(PublishError, match=r"names no bucket; write \w+://bucket/folder"):
        open_destination(address)


@pytest.mark.parametrize(
    ("address", "meant"),
    [("s3:/bucket/x", "s3://bucket/x"), ("hf:org/name", "hf://org/name"), ("oci:/host/name:tag", "oci://host/name:tag"), ("s3:", "s3://")],
)
def test_address_with_too_few_slashes_makes_no_folder(address: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PublishError, match=f"write {re.escape(meant)}, or "):
        open_destination(address)
    (tmp_path / "s3:").mkdir()
    assert open_destination("s3:").url == "s3:"


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["config.json", "openvino/openvino_model.bin", MANIFEST])
def test_damaged_folder_is_sent_what_it_lacks(exported: Path, tmp_path: Path, name: str) -> None:
    there = tmp_path / "there"
    publish(exported, open_destination(str(there)), silent)
    flip_byte(there / name)
    with pytest.raises((ArtifactError, PublishError)):
        pull(open_destination(str(there)), tmp_path / "early", silent)
    assert publish(exported, open_destination(str(there)), silent, dry_run=True).sent == (name,)
    assert publish(exported, open_destination(str(there)), silent).sent == (name,)
    pull(open_destination(str(there)), tmp_path / "back", silent)
    assert contents(tmp_path / "back") == contents(exported)


@pytest.mark.parametrize("repaired", ["openvino/openvino_model.bin", "config.json"])
def test_store_that_lists_only_sizes_is_repaired_on_request(exported: Path, repaired: str, tmp_path: Path) -> None:
    store = fsspec.filesystem("memory").store
    try:
        publish(exported, open_destination("memory://bucket/there"), silent)
        content = bytearray(store[f"/bucket/there/{repaired}"].getvalue())
        content[-1] ^= 1
        fsspec.filesystem("memory").pipe_file(f"/bucket/there/{repaired}", bytes(content))
        unread = publish(exported, open_destination("memory://bucket/there"), silent)
        assert (unread.sent, unread.compared) == ((), "sizes")
        planned = publish(exported, open_destination("memory://bucket/there"), silent, repair=True, dry_run=True)
        done = publish(exported, open_destination("memory://bucket/there"), silent, repair=True)
        assert planned.repaired == done.repaired == done.sent == (repaired,)
        pull(open_destination("memory://bucket/there"), tmp_path / "back", silent)
        assert contents(tmp_path / "back") == contents(exported)
        assert publish(exported, open_destination("memory://bucket/there"), silent, repair=True).sent == ()
    finally:
        store.clear()


def test_manifest_of_another_program_is_not_replaced(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / MANIFEST).write_text('{"name": "My web app"}')
    with pytest.raises(PublishError, match="or choose an empty folder"):
        publish(exported, open_destination(str(tmp_path / "site")), silent)
    assert contents(tmp_path / "site") == {MANIFEST: b'{"name": "My web app"}'}


def test_unknown_scheme_is_an_error_without_the_secrets_in_it() -> None:
    with pytest.raises(PublishError) as caught:
        open_destination("nosuch://user:secret@host/x?token=t0ken")
    assert "nosuch://host/x" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "t0ken" not in str(caught.value)
