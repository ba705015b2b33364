"""A base from a hub, against a local server that speaks the hub's protocol."""

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from optbench.artifact.folder import Artifact, open_artifact
from optbench.base.entry import Base
from optbench.base.obtain import base_key, obtain_base
from optbench.base.origin import read_origin
from optbench.errors import BaseModelError, MachineError
from optbench.model.checkpoint import describe
from optbench.recipe.starter import read_model
from tests.hub_server import HubServer, Repository

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "acme/tiny-embed"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub, and huggingface_hub pointed at it with a cache of its own."""
    from huggingface_hub import close_session, constants

    server = HubServer()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    # Small enough that a broken connection leaves something behind in a tiny file.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 256)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    close_session()
    yield server
    close_session()
    server.close()


def read_folder(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def repository(hub: HubServer, make_checkpoint: Callable[..., Artifact]) -> Repository:
    files = read_folder(make_checkpoint().path)
    del files["manifest.json"]
    files |= {"README.md": b"# tiny", ".gitattributes": b"*", "onnx/model.onnx": b"x" * 4096, "pytorch_model.bin": b"p" * 4096}
    hub.repositories[NAME] = Repository(COMMIT, files)
    return hub.repositories[NAME]


@pytest.fixture
def base(make_checkpoint: Callable[..., Artifact]) -> Base:
    description = describe(make_checkpoint().path)
    return Base(
        source=f"hub:{NAME}",
        revision=COMMIT,
        license="MIT",
        body=description.body,
        pooling="mean",
        normalize=True,
        prompts=description.prompts,
        max_tokens=description.max_tokens,
    )


def test_pinned_model_is_fetched_without_what_is_not_read(hub: HubServer, repository: Repository, base: Base, tmp_path: Path) -> None:
    shares: list[float] = []
    artifact = obtain_base(base, cache=tmp_path / "cache", progress=lambda message, share: shares.append(share or 0.0))
    assert artifact.weights == "real"
    assert artifact.main_file.read_bytes() == repository.files["model.safetensors"]
    assert not {"README.md", "pytorch_model.bin", "onnx/model.onnx", ".gitattributes"} & artifact.manifest.files.keys()
    assert {request.path.rsplit("/", 1)[-1] for request in hub.requests}.isdisjoint({"README.md", "pytorch_model.bin", "model.onnx"})
    assert max(shares) == 1.0
    assert read_origin(artifact.path).model_dump() == {
        "source": f"hub:{NAME}",
        "revision": COMMIT,
        "license": "MIT",
        "weights": "real",
        "warnings": (),
    }
    assert open_artifact(artifact.path) == artifact


def test_second_run_asks_the_hub_nothing(hub: HubServer, repository: Repository, base: Base, tmp_path: Path) -> None:
    first = obtain_base(base, cache=tmp_path / "cache")
    hub.requests.clear()
    assert obtain_base(base, cache=tmp_path / "cache") == first
    assert hub.requests == []


def test_files_in_the_hub_cache_are_not_downloaded_again(hub: HubServer, repository: Repository, base: Base, tmp_path: Path) -> None:
    first = obtain_base(base, cache=tmp_path / "one")
    hub.requests.clear()
    assert obtain_base(base, cache=tmp_path / "two").sha256 == first.sha256
    assert [request.path for request in hub.requests] == [f"/api/models/{NAME}/revision/{COMMIT}"]


def test_branch_is_put_on_record_with_the_commit_it_gave(repository: Repository, base: Base, tmp_path: Path) -> None:
    artifact = obtain_base(base.model_copy(update={"revision": None}), cache=tmp_path / "cache")
    origin = read_origin(artifact.path)
    assert origin.revision == COMMIT
    assert f"write `revision: {COMMIT}` into the recipe" in origin.warnings[0]


def test_short_hash_is_resolved_and_put_on_record(repository: Repository, base: Base, tmp_path: Path) -> None:
    artifact = obtain_base(base.model_copy(update={"revision": COMMIT[:8]}), cache=tmp_path / "cache")
    assert read_origin(artifact.path).revision == COMMIT
    assert len(read_origin(artifact.path).warnings) == 1


def test_cut_connection_is_resumed_within_a_run(hub: HubServer, repository: Repository, base: Base, tmp_path: Path) -> None:
    repository.faults["model.safetensors"] = ["cut:8192"]
    artifact = obtain_base(base, cache=tmp_path / "cache")
    assert artifact.main_file.read_bytes() == repository.files["model.safetensors"]
    assert [request.headers.get("range") for request in hub.content_requests("model.safetensors")] == [None, "bytes=8192-"]


def test_broken_download_is_resumed_by_the_next_run(hub: HubServer, repository: Repository, base: Base, tmp_path: Path) -> None:
    repository.faults["model.safetensors"] = ["cut:8192", "status:503"]
    with pytest.raises(BaseModelError, match=r"model\.safetensors: .* answers 503.*--base path:DIR.*--weights random"):
        obtain_base(base, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("staging*"))
    hub.requests.clear()
    artifact = obtain_base(base, cache=tmp_path / "cache")
    assert artifact.main_file.read_bytes() == repository.files["model.safetensors"]
    (request,) = hub.content_requests("model.safetensors")
    assert request.headers["range"] == "bytes=8192-"
    assert not list((tmp_path / "hub").rglob("*.incomplete"))


def test_stale_partial_file_longer_than_the_model_is_dropped(repository: Repository, base: Base, tmp_path: Path) -> None:
    content = repository.files["model.safetensors"]
    blobs = tmp_path / "hub" / f"models--{NAME.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hashlib.sha256(content).hexdigest()}.optbench.incomplete").write_bytes(content + b"more")
    assert obtain_base(base, cache=tmp_path / "cache").main_file.read_bytes() == content


OURS = """
import pathlib, sys
from huggingface_hub import constants
from optbench.base.entry import Base
from optbench.base.obtain import obtain_base
constants.DOWNLOAD_CHUNK_SIZE = 256
obtain_base(Base.model_validate_json(sys.argv[1]), cache=pathlib.Path(sys.argv[2]))
"""
LIBRARY = f"""
from huggingface_hub import constants, hf_hub_download
constants.DOWNLOAD_CHUNK_SIZE = 256
hf_hub_download("{NAME}", "model.safetensors", revision="{COMMIT}")
"""


@pytest.mark.parametrize(("code", "resumed"), [(OURS, True), (LIBRARY, False)])
def test_killed_download_is_resumed_which_huggingface_hub_alone_does_not_do(
    hub: HubServer, repository: Repository, base: Base, tmp_path: Path, code: str, resumed: bool
) -> None:
    repository.faults["model.safetensors"] = ["stall:20000"]
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1,localhost"}
    environment.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-c", code, base.model_dump_json(), str(tmp_path / "cache")]
    with subprocess.Popen(command, env=environment) as child:
        assert hub.stalled.wait(60)
        # What was sent arrives in its file, but for the last buffer.
        while not (partial := [path for path in (tmp_path / "home").rglob("*.incomplete") if path.stat().st_size > 8192]):
            assert child.poll() is None
        child.kill()
    size_bytes = partial[0].stat().st_size
    subprocess.run(command, env=environment, check=True)
    ranges = [request.headers.get("range") for request in hub.content_requests("model.safetensors")]
    assert ranges == [None, f"bytes={size_bytes}-" if resumed else None]
    assert partial[0].exists() != resumed
    (pointer,) = (tmp_path / "home").glob("hub/*/snapshots/*/model.safetensors")
    assert pointer.read_bytes() == repository.files["model.safetensors"]


def test_partial_file_of_other_bytes_is_found_by_its_hash_and_deleted(repository: Repository, base: Base, tmp_path: Path) -> None:
    content = repository.files["model.safetensors"]
    blobs = tmp_path / "hub" / f"models--{NAME.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hashlib.sha256(content).hexdigest()}.optbench.incomplete").write_bytes(b"x" * 1000)
    with pytest.raises(BaseModelError, match=r"model\.safetensors: the download has sha256 .*, and was deleted; run again"):
        obtain_base(base, cache=tmp_path / "cache")
    assert obtain_base(base, cache=tmp_path / "cache").main_file.read_bytes() == content


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_file_with_another_hash_is_refused_and_not_kept(repository: Repository, base: Base, tmp_path: Path, name: str) -> None:
    content = repository.files[name]
    repository.files[name] = content[:-2] + b"!" + content[-1:]
    repository.announced[name] = content
    with pytest.raises(BaseModelError, match=rf"{name}: the download has (sha256|git hash) .*, not .*, and was deleted"):
        obtain_base(base, cache=tmp_path / "cache")
    repository.files[name] = content
    assert obtain_base(base, cache=tmp_path / "cache").weights == "real"


def test_corrupted_file_in_the_hub_cache_is_downloaded_again(
    repository: Repository, base: Base, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    obtain_base(base, cache=tmp_path / "one")
    (cached,) = (tmp_path / "hub").glob("*/snapshots/*/model.safetensors")
    blob = cached.resolve()
    content = blob.read_bytes()
    blob.unlink()
    blob.write_bytes(content[:-1] + b"!")
    artifact = obtain_base(base, cache=tmp_path / "two")
    assert artifact.main_file.read_bytes() == content
    assert "downloading it again" in caplog.text


def test_unknown_model_names_two_alternatives(repository: Repository, base: Base, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"hub:acme/other: not found at .*Two alternatives: .*--base path:DIR.*--weights random"):
        obtain_base(base.model_copy(update={"source": "hub:acme/other"}), cache=tmp_path / "cache")


def test_unknown_revision_is_named(repository: Repository, base: Base, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"has no revision 'v9' \(404\).*--weights random"):
        obtain_base(base.model_copy(update={"revision": "v9"}), cache=tmp_path / "cache")


def test_gated_model_says_where_to_accept_and_the_token_opens_it(
    hub: HubServer, repository: Repository, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.gated = True
    with pytest.raises(BaseModelError, match=rf"gated \(403\): accept its terms at {hub.url}/{NAME} and set HF_TOKEN.*--base path:DIR"):
        obtain_base(base, cache=tmp_path / "cache")
    monkeypatch.setenv("HF_TOKEN", "accepted")
    assert obtain_base(base, cache=tmp_path / "cache").weights == "real"
    assert [request.headers.get("authorization") for request in hub.content_requests("model.safetensors")] == [None]


def test_unreachable_hub_names_two_alternatives(hub: HubServer, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(BaseModelError, match=r"cannot be reached .*--revision 0123.*--base path:DIR.*--weights random"):
            obtain_base(base, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("staging*"))


def test_offline_mode_is_named(hub: HubServer, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BaseModelError, match=r"HF_HUB_OFFLINE is set.*--weights random"):
        obtain_base(base, cache=tmp_path / "cache")
    assert hub.requests == []


def test_offline_mode_takes_what_the_hub_cache_holds(
    repository: Repository, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    obtain_base(base, cache=tmp_path / "one")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    artifact = obtain_base(base, cache=tmp_path / "two")
    origin = read_origin(artifact.path)
    assert origin.revision == COMMIT
    assert "taken from the hub cache" in origin.warnings[0]


def test_offline_mode_takes_files_of_the_store_that_models_share_but_no_broken_one(
    repository: Repository, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    obtain_base(base, cache=tmp_path / "one")
    # As huggingface_hub 1.33 lays out files that came by Xet: the blob links to a file named by another hash.
    (pointer,) = (tmp_path / "hub").glob("*/snapshots/*/model.safetensors")
    blob = pointer.parent / pointer.readlink()
    shared = tmp_path / "hub" / "blobs" / "ab" / ("ab" * 32)
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(shared)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert read_origin(obtain_base(base, cache=tmp_path / "two").path).revision == COMMIT
    # A new file: the bytes of the old one are the artifacts' too.
    broken = shared.read_bytes()[:-1] + b"!"
    shared.unlink()
    shared.write_bytes(broken)
    with pytest.raises(BaseModelError, match=r"model\.safetensors has sha256 .* cannot be reached to download it again: delete it"):
        obtain_base(base, cache=tmp_path / "three")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert obtain_base(base, cache=tmp_path / "three").main_file.read_bytes() == repository.files["model.safetensors"]
    assert not shared.exists()


def test_server_that_is_no_hub_is_named(hub: HubServer, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HubServer, "listing", b"<html>welcome to our network</html>")
    hub.repositories[NAME] = Repository(COMMIT, {})
    with pytest.raises(BaseModelError, match="does not answer like a hub"):
        obtain_base(base, cache=tmp_path / "cache")


def test_pickle_only_model_is_refused_before_anything_is_downloaded(
    hub: HubServer, repository: Repository, base: Base, tmp_path: Path
) -> None:
    del repository.files["model.safetensors"], repository.files["tokenizer.json"]
    with pytest.raises(BaseModelError, match=r"only pytorch_model\.bin, .*safetensors only.*; no tokenizer\.json: .*save_pretrained"):
        obtain_base(base, cache=tmp_path / "cache")
    assert len(hub.requests) == 1


def test_contradiction_with_the_recipe_shows_both(repository: Repository, base: Base, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"pooling: the recipe says cls, 1_Pooling/config\.json says mean"):
        obtain_base(base.model_copy(update={"pooling": "cls"}), cache=tmp_path / "cache")


def test_download_that_does_not_fit_the_disk_is_refused_first(
    hub: HubServer, repository: Repository, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optbench.machine.disk.shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(MachineError, match=rf"downloading {NAME} needs"):
        obtain_base(base, cache=tmp_path / "cache")
    assert len(hub.requests) == 1


def test_override_takes_a_derivative_without_the_recipes_revision(
    hub: HubServer, repository: Repository, base: Base, tmp_path: Path
) -> None:
    hub.repositories["team/tuned"] = Repository("f" * 40, dict(repository.files))
    artifact = obtain_base(base, cache=tmp_path / "cache", override="hub:team/tuned@" + "f" * 40)
    assert read_origin(artifact.path).source == "hub:team/tuned"
    assert read_origin(artifact.path).revision == "f" * 40
    assert base_key(base, "real", "hub:team/tuned@" + "f" * 40) != base_key(base)


def test_environment_variables_are_honored_and_nothing_is_printed(
    hub: HubServer, repository: Repository, base: Base, tmp_path: Path
) -> None:
    repository.gated = True
    code = (
        "import sys, pathlib; from optbench.base.entry import Base; from optbench.base.obtain import obtain_base;"
        "print(obtain_base(Base.model_validate_json(sys.argv[1]), cache=pathlib.Path(sys.argv[2])).sha256)"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "accepted",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    environment.pop("HF_HUB_CACHE", None)
    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, base.model_dump_json(), str(tmp_path / "cache")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert child.stderr == ""
    assert child.stdout.strip() == open_artifact(tmp_path / "cache" / "artifacts" / base_key(base)).sha256
    assert list((tmp_path / "home" / "hub").glob("models--acme--tiny-embed/snapshots/*/config.json"))
    # Neither telemetry nor any other address than the model's.
    assert {request.path.split("/")[1] for request in hub.requests} == {"api", "acme", "content"}
    assert not [request for request in hub.requests if "telemetry" in request.path or "harness" in request.path]
    assert json.loads(base.model_dump_json())["source"] == f"hub:{NAME}"


def test_starter_recipe_of_a_hub_model_is_pinned_and_takes_the_small_files_only(hub: HubServer, repository: Repository) -> None:
    repository.card = {"license": "apache-2.0"}
    model = read_model(f"hub:{NAME}")
    assert (model.name, model.source, model.revision, model.license) == ("tiny-embed", f"hub:{NAME}", COMMIT, "Apache-2.0")
    assert model.description.body.hidden == 32
    assert not any("model.safetensors" in request.path for request in hub.requests)
