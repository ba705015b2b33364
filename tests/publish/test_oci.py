"""Publishing to a real OCI registry, and pulling from it."""

import base64
import hashlib
import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from optbench.artifact.folder import open_artifact
from optbench.errors import PublishError
from optbench.publish import open_destination, publish, pull
from tests.cutting_proxy import CuttingProxy
from tests.publish.conftest import running_registry, silent
from tests.publish.test_filesystem import contents, flip_byte

_numbers = itertools.count()


@pytest.fixture
def name() -> str:
    """A repository that no other test uses, since blobs belong to a repository."""
    return f"team/model{next(_numbers)}:v1"


@pytest.fixture
def proxy(registry: str, request: pytest.FixtureRequest) -> Iterator[CuttingProxy]:
    """The registry behind a connection that can be cut; `request.param` says which way is counted."""
    made = CuttingProxy(registry, request.param)
    yield made
    made.close()


def test_what_is_pulled_from_a_registry_is_byte_for_byte_what_was_published(
    exported: Path, registry: str, name: str, tmp_path: Path
) -> None:
    address = f"oci://{registry}/{name}"
    planned = publish(exported, open_destination(address), silent, dry_run=True)
    published = publish(exported, open_destination(address), silent)
    assert set(published.sent) == set(planned.sent) == contents(exported).keys()
    assert publish(exported, open_destination(address), silent).sent == ()
    pulled = pull(open_destination(address), tmp_path / "back", silent)
    assert contents(tmp_path / "back") == contents(exported)
    assert pulled.fetched_bytes == open_artifact(exported).size_bytes


def test_registry_holds_plain_files_that_oras_itself_pulls(exported: Path, registry: str, name: str, tmp_path: Path) -> None:
    import oras.client

    publish(exported, open_destination(f"oci://{registry}/{name}"), silent)
    oras.client.OrasClient(insecure=True).pull(f"{registry}/{name}", outdir=str(tmp_path / "back"))
    assert contents(tmp_path / "back") == contents(exported)


@pytest.mark.parametrize("proxy", ["sent"], indirect=True)
def test_cut_publication_to_a_registry_goes_on_with_the_next_blob(exported: Path, proxy: CuttingProxy, name: str, tmp_path: Path) -> None:
    address = f"oci://{proxy.address}/{name}"
    proxy.allow_bytes = open_artifact(exported).size_bytes // 2
    with pytest.raises(PublishError, match=r"failed .*run again to resume"):
        publish(exported, open_destination(address), silent)
    proxy.allow_bytes = float("inf")
    with pytest.raises(PublishError, match="nothing is published there"):
        pull(open_destination(address), tmp_path / "early", silent)
    sent = publish(exported, open_destination(address), silent).sent
    assert 0 < len(sent) < len(contents(exported))
    pull(open_destination(address), tmp_path / "back", silent)
    assert contents(tmp_path / "back") == contents(exported)


@pytest.mark.parametrize("proxy", ["received"], indirect=True)
def test_cut_pull_from_a_registry_goes_on_at_the_byte_where_it_was_cut(
    exported: Path, proxy: CuttingProxy, name: str, tmp_path: Path
) -> None:
    address = f"oci://{proxy.address}/{name}"
    publish(exported, open_destination(address), silent)
    proxy.allow_bytes = open_artifact(exported).size_bytes // 2
    with pytest.raises(PublishError, match=r"failed .*run again to resume"):
        pull(open_destination(address), tmp_path / "back", silent)
    assert not (tmp_path / "back").exists()
    came = sum(path.stat().st_size for path in (tmp_path / ".back.pulling").rglob("*") if path.is_file())
    assert came
    proxy.allow_bytes = float("inf")
    pulled = pull(open_destination(address), tmp_path / "back", silent)
    assert pulled.fetched_bytes == open_artifact(exported).size_bytes - came
    assert contents(tmp_path / "back") == contents(exported)


def test_large_file_goes_over_in_pieces(exported: Path, registry: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from optbench.publish import oci

    monkeypatch.setattr(oci, "CHUNK_BYTES", 10_000)
    publish(exported, open_destination(f"oci://{registry}/{name}"), silent)
    pull(open_destination(f"oci://{registry}/{name}"), tmp_path / "back", silent)
    assert contents(tmp_path / "back") == contents(exported)


def test_tag_moves_to_the_newer_artifact_and_shared_blobs_are_not_sent_again(
    make_exported: Callable[..., Path], registry: str, name: str, tmp_path: Path
) -> None:
    address = f"oci://{registry}/{name}"
    publish(make_exported(), open_destination(address), silent)
    new = make_exported("newer", created="2026-11-25T12:00:00Z")
    sent = publish(new, open_destination(address), silent).sent
    assert not any(each.startswith("openvino/") for each in sent)
    pull(open_destination(address), tmp_path / "back", silent)
    assert contents(tmp_path / "back") == contents(new)


def test_registry_that_does_not_answer_is_one_sentence_at_once_when_publishing(exported: Path) -> None:
    with pytest.raises(PublishError) as caught:
        publish(exported, open_destination("oci://127.0.0.1:1/x:y"), silent)
    assert str(caught.value) == (
        "oci://127.0.0.1:1/x:y: cannot be reached: the connection to the registry 127.0.0.1:1 failed (Connection refused); check its "
        "address, the network, the proxy and the certificate, then run again to resume"
    )


def test_registry_that_does_not_answer_is_one_sentence_at_once_when_pulling(tmp_path: Path) -> None:
    with pytest.raises(PublishError, match=r"cannot be read: the connection to the registry 127.0.0.1:1 failed \(Connection refused\)"):
        pull(open_destination("oci://127.0.0.1:1/x:y"), tmp_path / "back", silent)


def test_connection_that_the_registry_drops_without_an_answer_broke_off(tmp_path: Path) -> None:
    def drop(listener: socket.socket) -> None:
        client, _ = listener.accept()
        client.recv(4096)
        client.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        dropping = threading.Thread(target=drop, args=(listener,))
        dropping.start()
        with pytest.raises(PublishError, match=rf"the connection to the registry {host} failed \(closed by the other side\)"):
            pull(open_destination(f"oci://{host}/x:y"), tmp_path / "back", silent)
        dropping.join()


@pytest.mark.parametrize(
    "address", ["oci://host/Upper:tag", "oci://host/name", "oci://host/../name:tag", "oci://name:tag", "oci://u:p@host/n:t"]
)
def test_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(PublishError, match="not a registry address; write oci://host/name:tag"):
        open_destination(address)


def blob_of(registry_folder: Path, content: bytes) -> Path:
    digest = hashlib.sha256(content).hexdigest()
    return registry_folder / "data" / "docker" / "registry" / "v2" / "blobs" / "sha256" / digest[:2] / digest / "data"


def test_blob_that_a_registry_has_lost_is_sent_again(
    exported: Path, registry: str, registry_folder: Path, name: str, tmp_path: Path
) -> None:
    address = f"oci://{registry}/{name}"
    publish(exported, open_destination(address), silent)
    blob_of(registry_folder, (exported / "openvino" / "openvino_model.bin").read_bytes()).unlink()
    assert publish(exported, open_destination(address), silent, repair=True).sent == ("openvino/openvino_model.bin",)
    pull(open_destination(address), tmp_path / "back", silent)
    assert contents(tmp_path / "back") == contents(exported)


def test_registry_that_keeps_its_damaged_blob_is_an_error_with_its_digest(
    exported: Path, registry: str, registry_folder: Path, name: str
) -> None:
    address, damaged = f"oci://{registry}/{name}", "openvino/openvino_model.bin"
    content = (exported / damaged).read_bytes()
    publish(exported, open_destination(address), silent)
    flip_byte(blob_of(registry_folder, content))
    try:
        assert publish(exported, open_destination(address), silent, repair=True, dry_run=True).repaired == (damaged,)
        # docker-registry takes the blob and keeps the one that it had under this digest.
        with pytest.raises(PublishError, match=f"keeps other bytes of {damaged}.*delete sha256 {hashlib.sha256(content).hexdigest()}"):
            publish(exported, open_destination(address), silent, repair=True)
    finally:
        flip_byte(blob_of(registry_folder, content))


# Of "right", at bcrypt's lowest cost.
PASSWORD_HASH = "$2y$04$YhQrvYdhBTmuKr2zKg4ZduNUawX6VuyPRJOyW4Lw1pLSAJQ8NpkLa"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry that itself asks for a user and password."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "passwords").write_text(f"user:{PASSWORD_HASH}\n")
    with running_registry(folder, f"auth: {{htpasswd: {{realm: guarded, path: {folder / 'passwords'}}}}}\n") as address:
        yield address


def log_in(monkeypatch: pytest.MonkeyPatch, folder: Path, address: str, password: str) -> None:
    """What `docker login` leaves."""
    folder.mkdir()
    auth = base64.b64encode(f"user:{password}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {address: {"auth": auth}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))


def test_password_of_a_registry_opens_it(exported: Path, guarded: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log_in(monkeypatch, tmp_path / "docker", guarded, "right")
    publish(exported, open_destination(f"oci://{guarded}/{name}"), silent)
    pull(open_destination(f"oci://{guarded}/{name}"), tmp_path / "back", silent)
    assert contents(tmp_path / "back") == contents(exported)


@pytest.mark.parametrize(
    ("password", "message"),
    [("mistyped", "wrong user or password; run docker login {host} again"), (None, "needs a user and password; run docker login {host}")],
)
def test_wrong_and_missing_passwords_of_a_registry_are_told_apart(
    exported: Path, guarded: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, password: str | None, message: str
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "none"))
    if password:
        log_in(monkeypatch, tmp_path / "docker", guarded, password)
    for attempt in (
        lambda: publish(exported, open_destination(f"oci://{guarded}/{name}"), silent),
        lambda: pull(open_destination(f"oci://{guarded}/{name}"), tmp_path / "back", silent),
    ):
        with pytest.raises(PublishError) as caught:
            attempt()
        assert message.format(host=guarded) in str(caught.value)
        assert "mistyped" not in str(caught.value)
