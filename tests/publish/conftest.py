"""A small artifact that may be published, a registry, and a hub."""

import contextlib
import dataclasses
import hashlib
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from optbench.artifact.folder import Artifact
from optbench.artifact.manifest import Kind
from optbench.record.record import Record
from optbench.record.verdict import judge
from optbench.report.card import render_card
from optbench.run.apply import export_artifact
from tests.writable_hub import WritableHub


def silent(_message: str, _share: float | None) -> None:
    """Progress that nobody watches."""


@pytest.fixture
def make_exported(make_artifact: Callable[..., Artifact], make_record: Callable[..., Record], tmp_path: Path) -> Callable[..., Path]:
    """A factory of exported folders, each with a record of its own bytes: `make_exported(candidate_ms=48.0)` fails its verdict."""

    def make(output: str = "exported", kind: Kind = Kind.OPENVINO, license: str = "MIT", **options: object) -> Path:  # noqa: A002
        artifact = make_artifact(kind)
        record = make_record(**options)
        # The tiny model's weights are random; published ones are not.
        measured = hashlib.sha256(artifact.manifest.model_copy(update={"weights": "real"}).to_bytes()).hexdigest()
        final = record.final.model_copy(update={"artifact_sha256": measured, "kind": kind})
        base = record.recipe.base.model_copy(update={"license": license})
        recipe = record.recipe.model_copy(update={"base": base})
        record = record.model_copy(update={"points": (*record.points[:-1], final), "recipe": recipe})
        (tmp_path / output).mkdir()
        folder = export_artifact(
            dataclasses.replace(artifact, weights="real"), record, tmp_path / output, render_card(record, judge(record))
        )
        # Its files are links to the session's one tiny model, which a test that tampers must not touch.
        shutil.copytree(folder, tmp_path / output / "copy")
        return tmp_path / output / "copy"

    return make


@pytest.fixture
def exported(make_exported: Callable[..., Path]) -> Path:
    """A folder that may be published."""
    return make_exported()


@contextlib.contextmanager
def running_registry(folder: Path, extra: str = "") -> Iterator[str]:
    """The address of a real OCI registry, Debian's docker-registry, started on loopback; it keeps its blobs in `folder`."""
    program = shutil.which("docker-registry") or shutil.which("registry")
    if program is None:
        pytest.skip("no OCI registry: apt-get install docker-registry")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder / 'data'}}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n{extra}"
    )
    with (folder / "log").open("wb") as log, subprocess.Popen([program, "serve", str(config)], stdout=log, stderr=log) as process:
        try:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.02)
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()


@pytest.fixture(scope="module")
def registry_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the registry keeps its blobs."""
    return tmp_path_factory.mktemp("registry")


@pytest.fixture(scope="module")
def registry(registry_folder: Path) -> Iterator[str]:
    """The address of a registry that anybody may write to."""
    with running_registry(registry_folder) as address:
        yield address


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[WritableHub]:
    """A hub on loopback that takes commits, and huggingface_hub set to talk to it."""
    from huggingface_hub import constants

    server = WritableHub()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the server speaks LFS only
    monkeypatch.setenv("HF_TOKEN", "accepted")
    yield server
    server.close()
