"""Files of a model from a Hugging Face hub: pinned, checked against their hashes, resumed where a download broke off.

The hub cache (`HF_HOME`), `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what they mean to huggingface_hub, which does
the work. Only large files are fetched here, by its own `http_get`: since 1.x it throws a partial file away with the process
that wrote it, and a base is one file of gigabytes. The finished file is put where huggingface_hub would have put it.
"""

import fcntl
import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optbench.base.layout import COMPANIONS, INDEX, WEIGHTS, check_names, read_shard_names, select_names
from optbench.errors import BaseModelError
from optbench.machine.disk import free_disk
from optbench.machine.progress import Progress

__all__ = ["HubFiles", "fetch_from_hub"]

logger = logging.getLogger(__name__)

TIMEOUT_S = 10.0
COMMIT = re.compile(r"[0-9a-f]{40}")
SHORT_COMMIT = re.compile(r"[0-9a-f]{7,40}")


@dataclass(frozen=True)
class HubFiles:
    """What a hub gave: files by name, the commit they belong to, warnings for the record, and the license on the model's card."""

    files: dict[str, Path]
    commit: str
    warnings: list[str] = field(default_factory=list)
    license: str | None = None


@dataclass(frozen=True)
class _Wanted:
    """A file as the hub describes it: `sha256` for a large one (LFS), `git_sha1` of the blob for the others."""

    name: str
    size_bytes: int
    sha256: str | None
    git_sha1: str | None


def fetch_from_hub(repository: str, revision: str | None, progress: Progress, *, weights: bool = True) -> HubFiles:
    """Make sure that a model's files are in the hub cache, whole and unchanged.

    Args:
        repository: `ORG/NAME`.
        revision: a commit, or a branch, tag or short hash; the default branch when None.
        progress: told the share of bytes.
        weights: False for the small files alone, which describe the model.

    Raises:
        BaseModelError: the hub or the model cannot be reached, or what came is not what the hub announced; names the two ways on.
    """
    import httpx
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    # Read once, when huggingface_hub is imported, so the variable cannot be relied on; without it each request sends who asks.
    constants.HF_HUB_DISABLE_TELEMETRY = True
    with _quiet_library():
        progress(f"asking {constants.ENDPOINT} for {repository}", None)
        try:
            info = HfApi(endpoint=constants.ENDPOINT).model_info(repository, revision=revision, files_metadata=True, timeout=TIMEOUT_S)
        except HfHubHTTPError as error:
            reason = _explain(error, repository, revision)
            if error.response.status_code < 500:
                raise _no_base(repository, revision, reason) from error
            return _from_cache(repository, revision, reason, error)
        except (httpx.HTTPError, OfflineModeIsEnabled) as error:
            offline = "HF_HUB_OFFLINE is set" if isinstance(error, OfflineModeIsEnabled) else f"cannot be reached ({error})"
            return _from_cache(repository, revision, f"{constants.ENDPOINT} {offline}", error)
        except (ValueError, KeyError, TypeError) as error:
            raise _no_base(repository, revision, f"{constants.ENDPOINT} does not answer like a hub ({error})") from error
        commit = str(info.sha)
        if not COMMIT.fullmatch(commit) or (revision and SHORT_COMMIT.fullmatch(revision) and not commit.startswith(revision)):
            raise _no_base(repository, revision, f"{constants.ENDPOINT} answers with commit {commit!r}")
        siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
        check_names(siblings, f"hub:{repository}@{commit}")
        names = [name for name in select_names(siblings) if weights or not name.endswith(".safetensors")]
        wanted = [_read_sibling(siblings[name], repository, revision) for name in names]
        stated = info.card_data.get("license") if info.card_data else None
        return HubFiles(_fetch_all(repository, commit, wanted, progress), commit, license=stated if isinstance(stated, str) else None)


def _read_sibling(sibling: Any, repository: str, revision: str | None) -> _Wanted:
    sha256 = sibling.lfs.sha256 if sibling.lfs else None
    git_sha1 = None if sibling.lfs else sibling.blob_id
    if sibling.size is None or not (sha256 or git_sha1):
        raise _no_base(repository, revision, f"the hub gives no size and hash of {sibling.rfilename}, so it could not be checked")
    if sha256 and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise _no_base(repository, revision, f"the hub gives {sha256!r} as the sha256 of {sibling.rfilename}")
    return _Wanted(sibling.rfilename, sibling.size, sha256, git_sha1)


def _fetch_all(repository: str, commit: str, wanted: list[_Wanted], progress: Progress) -> dict[str, Path]:
    from huggingface_hub import constants

    total = sum(file.size_bytes for file in wanted) or 1
    done = 0
    ready = {file.name: path for file in wanted if (path := _find_cached(repository, commit, file)) is not None}
    missing_bytes = sum(file.size_bytes for file in wanted if file.name not in ready)
    free_disk(Path(constants.HF_HUB_CACHE), missing_bytes, f"downloading {repository}")
    for file in wanted:
        if file.name not in ready:

            def report(got: int, name: str = file.name, before: int = done) -> None:
                progress(f"downloading {name}", min(1.0, (before + got) / total))

            ready[file.name] = _download(repository, commit, file, report)
        done += file.size_bytes
    return {file.name: ready[file.name] for file in wanted}


def _find_cached(repository: str, commit: str, file: _Wanted) -> Path | None:
    """The file in the hub cache, if it is there and whole; a broken one is removed so that it is fetched anew."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, file.name, revision=commit)
    if not isinstance(found, str):
        return None
    fault = _fault(Path(found), file)
    if fault is None:
        return Path(found)
    logger.warning("%s: %s; fetching it anew", found, fault)
    _remove(Path(found))
    return None


def _remove(pointer: Path) -> None:
    blob = pointer.resolve()
    pointer.unlink()
    blob.unlink(missing_ok=True)


def _fault(path: Path, file: _Wanted) -> str | None:
    """What is wrong with a downloaded file, if anything."""
    size_bytes = path.stat().st_size
    if size_bytes != file.size_bytes:
        return f"has {size_bytes} bytes, not {file.size_bytes}"
    with path.open("rb") as content:
        if file.sha256:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
            return None if digest == file.sha256 else f"has sha256 {digest}, not {file.sha256}"
        # git's blob hash is all that the hub gives for a file outside LFS.
        git = hashlib.sha1(f"blob {size_bytes}\0".encode(), usedforsecurity=False)
        while block := content.read(1 << 20):
            git.update(block)
    return None if git.hexdigest() == file.git_sha1 else f"has git hash {git.hexdigest()}, not {file.git_sha1}"


def _download(repository: str, commit: str, file: _Wanted, report: Callable[[int], None]) -> Path:
    import httpx
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled

    bar = _bar_class(report)
    try:
        if file.sha256:
            _download_large(repository, commit, file, bar)
        # For a large file the blob is there by now, and this names it in the commit's snapshot.
        path = Path(hf_hub_download(repository, file.name, revision=commit, endpoint=constants.ENDPOINT, tqdm_class=bar))
    except HfHubHTTPError as error:
        raise _no_base(repository, commit, f"{file.name}: {_explain(error, repository, commit)}") from error
    except (httpx.HTTPError, OfflineModeIsEnabled, EntryNotFoundError) as error:
        raise _no_base(repository, commit, f"{file.name}: {error}; run again, and it goes on from what came") from error
    except OSError as error:
        if error.errno is not None:
            raise  # the disk, not the hub
        raise _no_base(repository, commit, f"{file.name}: {error}") from error
    fault = _fault(path, file)
    if fault is not None:
        _remove(path)
        raise _no_base(repository, commit, f"{file.name}: what came {fault}; it was thrown away")
    return path


def _download_large(repository: str, commit: str, file: _Wanted, bar: type) -> None:
    """Fetch a file to the hub cache's blobs, going on where an earlier run, of any process, stopped."""
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.file_download import http_get, repo_folder_name
    from huggingface_hub.utils import build_hf_headers

    blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model") / "blobs"
    blob = blobs / str(file.sha256)
    if blob.exists():
        return
    blobs.mkdir(parents=True, exist_ok=True)
    # Named by its content, so that what is there can only be the beginning of the same bytes.
    partial = blobs / f"{file.sha256}.optbench.incomplete"
    with partial.open("ab") as target:
        fcntl.flock(target, fcntl.LOCK_EX)  # another run may be at it; the kernel frees the lock of a killed one
        if blob.exists():
            partial.unlink(missing_ok=True)
            return
        if target.seek(0, os.SEEK_END) > file.size_bytes:
            target.truncate(0)
            target.seek(0)
        # Compressed on the way, a file could not be resumed at a byte.
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        url = hf_hub_url(repository, file.name, revision=commit, endpoint=constants.ENDPOINT)
        http_get(url, target, resume_size=target.tell(), headers=headers, expected_size=file.size_bytes, tqdm_class=bar)
        target.flush()
        fault = _fault(partial, file)
        if fault is not None:
            partial.unlink()
            raise _no_base(repository, commit, f"{file.name}: what came {fault}; it was thrown away, run again to fetch it anew")
        partial.replace(blob)


def _bar_class(report: Callable[[int], None]) -> type:
    """A stand-in for tqdm, which is how huggingface_hub tells of its progress; it draws nothing."""

    class Bar:
        def __init__(self, *_: object, initial: int = 0, **__: object) -> None:
            self.got = initial

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, size_bytes: float | None = 1) -> None:
            self.got += int(size_bytes or 0)
            report(self.got)

        def close(self) -> None:
            pass

    return Bar


@contextmanager
def _quiet_library() -> Iterator[None]:
    """Keep huggingface_hub's own log off stderr; what matters of it is in the errors raised here."""
    library = logging.getLogger("huggingface_hub")
    level = library.level
    library.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        library.setLevel(level)


def _explain(error: Any, repository: str, revision: str | None) -> str:
    """A hub's refusal in words that say what to do about it."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return f"gated ({status}): accept its terms at {constants.ENDPOINT}/{repository} and set HF_TOKEN"
    if isinstance(error, RevisionNotFoundError):
        return f"has no revision {revision or 'main'!r} ({status})"
    if isinstance(error, RepositoryNotFoundError):
        return f"not found at {constants.ENDPOINT} ({status}): check the name; a private model needs HF_TOKEN"
    if status in (401, 403):
        return f"{constants.ENDPOINT} refuses access ({status}): check HF_TOKEN"
    return f"{constants.ENDPOINT} answers {status}"


def _no_base(repository: str, revision: str | None, reason: str) -> BaseModelError:
    pin = f" --revision {revision}" if revision else ""
    return BaseModelError(
        f"hub:{repository}: {reason}. Two ways on: --base path:DIR with a copy fetched elsewhere "
        f"(hf download {repository}{pin} --local-dir DIR), or --weights random for true latency without accuracy"
    )


def _from_cache(repository: str, revision: str | None, reason: str, cause: Exception) -> HubFiles:
    """The model as the hub cache has it, where the hub cannot be asked.

    Raises:
        BaseModelError: `reason`, as the cache does not hold the model.
    """
    from huggingface_hub import try_to_load_from_cache

    names = [*COMPANIONS, "1_Pooling/config.json", "2_Normalize/config.json", WEIGHTS, INDEX]
    found: dict[str, Path] = {}
    for name in names:
        path = try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(path, str):
            found[name] = Path(path)
    if WEIGHTS not in found and INDEX in found:
        for name in read_shard_names(found[INDEX]):
            path = try_to_load_from_cache(repository, name, revision=revision)
            if isinstance(path, str):
                found[name] = Path(path)
    try:
        check_names(found, f"hub:{repository}")
    except BaseModelError:
        raise _no_base(repository, revision, reason) from cause
    found = {name: found[name] for name in [*select_names(found), *(name for name in found if name.endswith(".safetensors"))]}
    for path in found.values():
        _check_cached(path, repository, revision)
    commit = found["config.json"].parent.name
    warning = f"hub:{repository}: {reason}; taken from the hub cache, which may lack small files"
    logger.warning("%s", warning)
    return HubFiles(found, commit, [warning])


def _check_cached(path: Path, repository: str, revision: str | None) -> None:
    """Check a cached file against its blob's name, which is its hash."""
    blob = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        file = _Wanted(path.name, blob.stat().st_size, blob.name, None)
    elif COMMIT.fullmatch(blob.name):
        file = _Wanted(path.name, blob.stat().st_size, None, blob.name)
    else:
        return  # a cache without links: nothing says what the file should be
    fault = _fault(blob, file)
    if fault is not None:
        raise _no_base(repository, revision, f"{path} {fault}, and the hub cannot be reached to fetch it anew: delete it")
