"""Signatures: made over the manifest, checked before a file is fetched, and no secret anywhere."""

from collections.abc import Callable
from pathlib import Path

import pytest

from optbench.artifact.folder import seal
from optbench.artifact.manifest import MANIFEST, SIGNATURE, Kind
from optbench.errors import PublishError
from optbench.publish import open_destination, publish, pull
from optbench.publish.signature import PASSWORD_VARIABLE, check_folder, read_public_key, secret_key, sign
from tests.publish.conftest import silent
from tests.publish.test_filesystem import contents


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A secret and a public key, as `minisign -G -W` writes them."""
    import minisign

    pair = minisign.KeyPair.generate()
    (tmp_path / "secret.key").write_bytes(bytes(pair.secret_key))
    (tmp_path / "public.key").write_bytes(bytes(pair.public_key))
    return tmp_path / "secret.key", tmp_path / "public.key"


def signature_by(path: Path, content: bytes) -> bytes:
    with secret_key(path) as key:
        return sign(content, key, "x")


def test_signed_artifact_is_pulled_with_its_key_and_stays_verifiable(exported: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    secret, public = keys
    there, before = str(tmp_path / "there"), contents(exported)
    with secret_key(secret) as key:
        planned = publish(exported, open_destination(there), silent, key=key, dry_run=True)
        done = publish(exported, open_destination(there), silent, key=key)
        assert done.signed
        assert planned.sent == done.sent
        assert SIGNATURE in done.sent
        assert publish(exported, open_destination(there), silent, key=key).sent == ()
    assert contents(exported) == before
    assert pull(open_destination(there), tmp_path / "back", silent, public_key=str(public)).signature == "verified"
    check_folder(tmp_path / "back", str(public))
    text = public.read_text().splitlines()[1]
    assert pull(open_destination(there), tmp_path / "by-text", silent, public_key=text).signature == "verified"
    assert pull(open_destination(there), tmp_path / "unasked", silent).signature == "present, not checked"


@pytest.mark.parametrize("where", ["folder", "memory"])
def test_publication_without_a_key_keeps_the_signature_until_the_artifact_changes(
    make_exported: Callable[..., Path], keys: tuple[Path, Path], tmp_path: Path, where: str
) -> None:
    old, new = make_exported(), make_exported("newer", created="2026-11-25T12:00:00Z")
    there = {"folder": str(tmp_path / "there"), "memory": f"memory://{tmp_path.name}/there"}[where]
    with secret_key(keys[0]) as key:
        publish(old, open_destination(there), silent, key=key)
    again = publish(old, open_destination(there), silent)
    assert (again.sent, again.signed) == ((), True)
    assert pull(open_destination(there), tmp_path / "back", silent, public_key=str(keys[1])).signature == "verified"
    assert not publish(new, open_destination(there), silent).signed
    assert pull(open_destination(there), tmp_path / "newer-back", silent).signature == "none"


def test_resealed_artifact_is_refused_before_a_file_is_fetched(
    exported: Path, keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, public = keys
    (exported / SIGNATURE).write_bytes(signature_by(secret, (exported / MANIFEST).read_bytes()))
    (exported / "README.md").write_text("a better model")
    signature = (exported / SIGNATURE).read_bytes()
    (exported / MANIFEST).unlink()
    (exported / SIGNATURE).unlink()
    staging = exported.rename(exported.parent / "staging")
    seal(staging, exported, Kind.OPENVINO, "real")
    (exported / SIGNATURE).write_bytes(signature)
    source = open_destination(str(exported))
    monkeypatch.setattr(source, "download", lambda *_: pytest.fail("it was fetched"))
    with pytest.raises(PublishError, match="its signature does not match this manifest and public key"):
        pull(source, tmp_path / "back", silent, public_key=str(public))


def test_other_key_and_missing_signature_are_refused(exported: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    import minisign

    secret, _ = keys
    other = minisign.KeyPair.generate().public_key.to_base64().decode()
    with pytest.raises(PublishError, match="not signed; ask its publisher"):
        pull(open_destination(str(exported)), tmp_path / "back", silent, public_key=other)
    (exported / SIGNATURE).write_bytes(signature_by(secret, (exported / MANIFEST).read_bytes()))
    with pytest.raises(PublishError, match="does not match this manifest and public key"):
        pull(open_destination(str(exported)), tmp_path / "back", silent, public_key=other)


@pytest.mark.parametrize("content", [b"", b"garbage", b"a\nb\nc\nd\n", b"\xff" * 300])
def test_broken_signature_is_an_error_and_no_bug(exported: Path, keys: tuple[Path, Path], content: bytes) -> None:
    (exported / SIGNATURE).write_bytes(content)
    with pytest.raises(PublishError, match="does not match this manifest"):
        check_folder(exported, str(keys[1]))


def test_password_opens_a_protected_key_and_is_never_said(exported: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import minisign

    secret, public = keys
    key = minisign.SecretKey.from_bytes(secret.read_bytes())
    key.encrypt("hunter2", opslimit=32768, memlimit=16777216)
    secret.write_bytes(bytes(key))
    content = (exported / MANIFEST).read_bytes()
    monkeypatch.setenv(PASSWORD_VARIABLE, "wrong-one")
    with pytest.raises(PublishError) as caught:
        signature_by(secret, content)
    assert str(caught.value) == f"{secret}: wrong password; correct {PASSWORD_VARIABLE}, which it was read from"
    monkeypatch.setenv(PASSWORD_VARIABLE, "hunter2")
    (exported / SIGNATURE).write_bytes(signature_by(secret, content))
    check_folder(exported, str(public))
    assert b"hunter2" not in (exported / SIGNATURE).read_bytes()


def test_protected_key_without_a_terminal_names_the_variable(keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    import minisign

    secret, _ = keys
    key = minisign.SecretKey.from_bytes(secret.read_bytes())
    key.encrypt("hunter2", opslimit=32768, memlimit=16777216)
    secret.write_bytes(bytes(key))
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(PublishError, match=f"set {PASSWORD_VARIABLE}, or run in a terminal"):
        signature_by(secret, b"x")


@pytest.mark.parametrize("text", ["", "not a key", "A" * 56])
def test_text_that_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(PublishError, match="not a minisign public key"):
        read_public_key(text)


def test_missing_secret_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(PublishError, match=r"none\.key: cannot use the secret key: No such file"):
        signature_by(tmp_path / "none.key", b"x")
