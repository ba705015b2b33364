"""Publishing to a hub over its own protocol, and pulling from it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from optbench.artifact.folder import open_artifact
from optbench.errors import PublishError
from optbench.publish import open_destination, publish, pull
from optbench.record.record import newest_record
from tests.hub_server import LFS_BYTES_MIN, Repository
from tests.publish.conftest import silent
from tests.publish.test_filesystem import contents
from tests.writable_hub import WritableHub

ADDRESS = "hf://team/model"
# huggingface_hub 1.33 sends a large file's bytes to httpx in a way that httpx has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def test_all_files_go_in_one_commit_with_the_recipes_tag_and_come_back_byte_for_byte(
    exported: Path, hub: WritableHub, tmp_path: Path
) -> None:
    published = publish(exported, open_destination(ADDRESS), silent)
    assert set(published.sent) == contents(exported).keys()
    commits = [request for request in hub.requests if "/commit/" in request.path]
    assert len(commits) == 1
    assert published.where == hub.repositories["team/model"].commit
    assert hub.tags["team/model"] == {f"recipe-{newest_record(exported).recipe_sha256[:16]}": published.where}
    pulled = pull(open_destination(ADDRESS), tmp_path / "back", silent)
    assert contents(tmp_path / "back") == contents(exported)
    assert pulled.sha256 == published.sha256


def test_second_publication_to_a_hub_sends_nothing(exported: Path, hub: WritableHub) -> None:
    first = publish(exported, open_destination(ADDRESS), silent)
    before = len(hub.bodies_sent())
    second = publish(exported, open_destination(ADDRESS), silent)
    assert second.sent == ()
    assert second.where == first.where
    assert len(hub.bodies_sent()) == before


def test_dry_run_leaves_a_hub_as_it_was(exported: Path, hub: WritableHub) -> None:
    planned = publish(exported, open_destination(ADDRESS), silent, dry_run=True)
    assert set(planned.sent) == contents(exported).keys()
    assert hub.repositories == {}


def test_cut_publication_to_a_hub_sends_only_the_rest(exported: Path, hub: WritableHub, tmp_path: Path) -> None:
    large = [content for content in contents(exported).values() if len(content) >= LFS_BYTES_MIN]
    hub.refuse_blobs_after = 2
    with pytest.raises(PublishError, match=r"publishing stopped: .*403"):
        publish(exported, open_destination(ADDRESS), silent)
    assert hub.repositories["team/model"].files == {}
    hub.refuse_blobs_after = None
    before = len([path for path in hub.bodies_sent() if path.startswith("/lfs/")])
    publish(exported, open_destination(ADDRESS), silent)
    assert len([path for path in hub.bodies_sent() if path.startswith("/lfs/")]) - before == len(large) - 2
    pull(open_destination(ADDRESS), tmp_path / "back", silent)
    assert contents(tmp_path / "back") == contents(exported)


def test_cut_pull_from_a_hub_goes_on_at_the_byte_where_it_was_cut(exported: Path, hub: WritableHub, tmp_path: Path) -> None:
    publish(exported, open_destination(ADDRESS), silent)
    name = "openvino/openvino_model.bin"
    hub.repositories["team/model"].faults[name] = ["cut:1000"]
    with pytest.raises(PublishError, match=f"{name} cannot be read: .*fix that and run again"):
        pull(open_destination(ADDRESS), tmp_path / "back", silent)
    assert not (tmp_path / "back").exists()
    pull(open_destination(ADDRESS), tmp_path / "back", silent)
    assert [request.headers.get("range") for request in hub.content_requests(name)] == [None, "bytes=1000-"]
    assert contents(tmp_path / "back") == contents(exported)


def test_newer_artifact_takes_the_tag_and_the_older_ones_files_go(
    make_exported: Callable[..., Path], hub: WritableHub, tmp_path: Path
) -> None:
    old, new = make_exported(), make_exported("newer", created="2026-11-25T12:00:00Z")
    publish(old, open_destination(ADDRESS), silent)
    hub.repositories["team/model"].files[".gitattributes"] = b"*.bin filter=lfs"
    published = publish(new, open_destination(ADDRESS), silent)
    assert not any(name.startswith("openvino/") for name in published.sent)
    assert list(hub.tags["team/model"].values()) == [published.where]
    assert hub.repositories["team/model"].files == contents(new) | {".gitattributes": b"*.bin filter=lfs"}
    pull(open_destination(ADDRESS), tmp_path / "back", silent)
    assert contents(tmp_path / "back") == contents(new)


def test_changed_file_on_a_hub_is_sent_again_and_a_signature_stays(exported: Path, hub: WritableHub, tmp_path: Path) -> None:
    import minisign

    pair = minisign.KeyPair.generate()
    publish(exported, open_destination(ADDRESS), silent, key=pair.secret_key)
    files = hub.repositories["team/model"].files
    assert "manifest.json.minisig" in files
    # Somebody commits another byte: the hub's own hash of the file says so.
    files["config.json"] = files["config.json"].replace(b"{", b"[", 1)
    again = publish(exported, open_destination(ADDRESS), silent)
    assert (again.sent, again.signed) == (("config.json",), True)
    assert publish(exported, open_destination(ADDRESS), silent, repair=True).sent == ()
    key = pair.public_key.to_base64().decode()
    assert pull(open_destination(ADDRESS), tmp_path / "back", silent, public_key=key).signature == "verified"


def test_pull_request_leaves_the_branch_and_the_tags_alone(exported: Path, hub: WritableHub) -> None:
    hub.repositories["team/model"] = Repository("0" * 40, {})
    published = publish(exported, open_destination(ADDRESS, pull_request=True), silent)
    assert published.where == f"{hub.url}/team/model/discussions/1"
    assert hub.pull_requests == [contents(exported)]
    assert hub.repositories["team/model"].files == {}
    assert hub.tags == {}


def test_file_that_the_hub_ignores_is_named(exported: Path, hub: WritableHub) -> None:
    hub.ignored = frozenset({"vocab.txt", "engine.json"})
    with pytest.raises(PublishError, match=r"the hub ignored engine.json; remove them from its \.gitignore"):
        publish(exported, open_destination(ADDRESS), silent)


def test_wrong_token_is_an_error_that_does_not_print_it(exported: Path, hub: WritableHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(PublishError, match=r"answers 401 .*check HF_TOKEN") as caught:
        publish(exported, open_destination(ADDRESS), silent)
    assert "hf_secret" not in str(caught.value)
    assert hub.repositories == {}


def test_token_does_not_go_to_the_content_host(exported: Path, hub: WritableHub, tmp_path: Path) -> None:
    publish(exported, open_destination(ADDRESS), silent)
    pull(open_destination(ADDRESS), tmp_path / "back", silent)
    requests = hub.content_requests("openvino/openvino_model.bin")
    assert requests
    assert all("authorization" not in request.headers for request in requests)


def test_repository_without_an_artifact_is_nothing_published(hub: WritableHub, tmp_path: Path) -> None:
    hub.repositories["team/model"] = Repository("0" * 40, {"README.md": b"soon"})
    with pytest.raises(PublishError, match="nothing is published there"):
        pull(open_destination(ADDRESS), tmp_path / "back", silent)
    with pytest.raises(PublishError, match="nothing is published there"):
        pull(open_destination("hf://team/none"), tmp_path / "back", silent)


@pytest.mark.parametrize("address", ["hf://model", "hf://a/b/c", "hf://../x", "hf://a/b@"])
def test_address_that_is_no_repository_is_refused(address: str) -> None:
    with pytest.raises(PublishError, match="not a hub address; write hf://org/name"):
        open_destination(address)


def test_only_a_hub_has_pull_requests(tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="has no pull requests; omit --pull-request"):
        open_destination(str(tmp_path), pull_request=True)


def test_pulled_size_is_that_of_the_artifact(exported: Path, hub: WritableHub, tmp_path: Path) -> None:
    publish(exported, open_destination(ADDRESS), silent)
    assert pull(open_destination(ADDRESS), tmp_path / "back", silent).fetched_bytes == open_artifact(exported).size_bytes
