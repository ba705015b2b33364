"""Publishing to an S3 server on loopback, and pulling from it."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from optbench.artifact.manifest import MANIFEST
from optbench.errors import PublishError
from optbench.publish import open_destination, publish, pull
from tests.publish.conftest import silent
from tests.publish.test_filesystem import contents

pytest.importorskip("s3fs", reason="no s3fs: pip install 'optbench[test]'")
pytest.importorskip("moto", reason="no moto: pip install 'optbench[test]'")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of moto's S3 server."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    yield "http://{}:{}".format(*running.get_host_and_port())
    running.stop()


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """That server with one empty bucket, `models`, where s3fs finds it."""
    import s3fs

    for name, value in {"AWS_ENDPOINT_URL": server, "AWS_ACCESS_KEY_ID": "user", "AWS_SECRET_ACCESS_KEY": "secret"}.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    system.mkdir("models")
    yield system
    system.rm("models", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()


def buckets(s3: Any) -> list[str]:
    s3.invalidate_cache()
    return [str(name) for name in s3.ls("")]


@pytest.mark.parametrize("address", ["s3://models", "s3://models/deep/folder"])
def test_bucket_takes_an_artifact_and_gives_it_back(exported: Path, s3: Any, address: str, tmp_path: Path) -> None:
    planned = publish(exported, open_destination(address), silent, dry_run=True)
    done = publish(exported, open_destination(address), silent)
    assert set(done.sent) == set(planned.sent) == contents(exported).keys()
    assert publish(exported, open_destination(address), silent).sent == ()
    pull(open_destination(address), tmp_path / "back", silent)
    assert contents(tmp_path / "back") == contents(exported)


@pytest.mark.parametrize("address", ["s3://modles", "s3://modles/deep/folder"])
@pytest.mark.parametrize("dry_run", [False, True])
def test_mistyped_bucket_is_named_and_not_created(exported: Path, s3: Any, address: str, dry_run: bool) -> None:
    with pytest.raises(PublishError, match=rf"{address}: there is no bucket modles; check its name, or create it"):
        publish(exported, open_destination(address), silent, dry_run=dry_run)
    assert buckets(s3) == ["models"]


def test_bucket_that_these_credentials_may_not_look_up_is_still_not_created(
    exported: Path, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = open_destination("s3://modles/x")

    def forbidden(path: str) -> bool:
        raise PermissionError("Forbidden")

    monkeypatch.setattr(destination._fs, "exists", forbidden)  # type: ignore[attr-defined]
    with pytest.raises(PublishError, match="publishing stopped: The specified bucket does not exist"):
        publish(exported, destination, silent)
    assert buckets(s3) == ["models"]


def test_changed_object_is_repaired(exported: Path, s3: Any, tmp_path: Path) -> None:
    publish(exported, open_destination("s3://models/x"), silent)
    content = bytearray(s3.cat_file("models/x/openvino/openvino_model.bin"))
    content[100] ^= 1
    s3.pipe_file("models/x/openvino/openvino_model.bin", bytes(content))
    assert publish(exported, open_destination("s3://models/x"), silent, repair=True).repaired == ("openvino/openvino_model.bin",)
    pull(open_destination("s3://models/x"), tmp_path / "back", silent)
    assert contents(tmp_path / "back") == contents(exported)


def test_pull_from_a_mistyped_bucket_says_that_nothing_is_there(s3: Any, tmp_path: Path) -> None:
    assert open_destination("s3://modles/x").read(MANIFEST, 1000) is None
    with pytest.raises(PublishError, match="s3://modles/x: nothing is published there; check the address"):
        pull(open_destination("s3://modles/x"), tmp_path / "back", silent)
