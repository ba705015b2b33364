"""Files of a model from a Hugging Face hub: pinned to a commit, checked against their hashes, resumed after a broken download.

The hub cache (`HF_HOME`), `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what they mean to huggingface_hub, which does the work. Two
things it does not do. A killed download starts again at byte 0 and leaves its partial file behind (1.33; tests/base/test_hub.py): large
files, as a base often is one of gigabytes, are downloaded here, with its `http_get`, and put where it would have put them. And it
accepts any bytes of the right length, so each file is hashed here.
"""

import fcntl
import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optbench.base.layout import check_names, find_files, select_names
from optbench.errors import BaseModelError
from optbench.machine.disk import free_disk
from optbench.machine.progress import Progress

__all__ = ["HubFiles", "fetch_from_hub", "find_in_cache"]

logger = logging.getLogger(__name__)

TIMEOUT_S = 10.0
SHA256 = re.compile(r"[0-9a-f]{64}")
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
class _HubFile:
    """A file as the hub describes it: `sha256` for a large one (LFS), `git_sha1` of the blob for the others."""

    name: str
    size_bytes: int
    sha256: str | None
    git_sha1: str | None


class _HubUnreachableError(Exception):
    """The hub cannot be asked; its cache may still hold the model."""


def fetch_from_hub(repository: str, revision: str | None, progress: Progress, *, weights: bool = True) -> HubFiles:
    """Make sure that a model's files are in the hub cache, whole and unchanged; without `weights`, the small files that describe it.

    `revision` is a commit, or a branch, tag or short hash; the default branch when None.

    Raises:
        BaseModelError: the hub or the model cannot be reached, or a file is not what the hub announced; names two alternatives.
    """
    from huggingface_hub import constants

    # The variable is read once, when huggingface_hub is imported, so it cannot be relied on.
    constants.HF_HUB_DISABLE_TELEMETRY = True
    with _quiet_library():
        progress(f"asking {constants.ENDPOINT} for {repository}", None)
        try:
            info = _model_info(repository, revision)
        except _HubUnreachableError as error:
            return _from_cache(repository, revision, str(error), error)
        commit = str(info.sha)
        if not COMMIT.fullmatch(commit) or (revision and SHORT_COMMIT.fullmatch(revision) and not commit.startswith(revision)):
            raise _no_base(repository, revision, f"{constants.ENDPOINT} answers with commit {commit!r}")
        siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
        check_names(siblings, f"hub:{repository}@{commit}")
        names = [name for name in select_names(siblings) if weights or not name.endswith(".safetensors")]
        announced = [_read_sibling(siblings[name], repository, revision) for name in names]
        stated = info.card_data.get("license") if info.card_data else None
        return HubFiles(_fetch_all(repository, commit, announced, progress), commit, license=stated if isinstance(stated, str) else None)


def _model_info(repository: str, revision: str | None) -> Any:
    import httpx
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return HfApi(endpoint=constants.ENDPOINT).model_info(repository, revision=revision, files_metadata=True, timeout=TIMEOUT_S)
    except HfHubHTTPError as error:
        reason = _explain(error, repository, revision)
        if error.response.status_code < 500:
            raise _no_base(repository, revision, reason) from error
        raise _HubUnreachableError(reason) from error
    except OfflineModeIsEnabled as error:
        raise _HubUnreachableError(f"{constants.ENDPOINT} cannot be asked: HF_HUB_OFFLINE is set") from error
    except httpx.HTTPError as error:
        raise _HubUnreachableError(f"{constants.ENDPOINT} cannot be reached ({error})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise _no_base(repository, revision, f"{constants.ENDPOINT} does not answer like a hub ({error})") from error


def _read_sibling(sibling: Any, repository: str, revision: str | None) -> _HubFile:
    sha256 = sibling.lfs.sha256 if sibling.lfs else None
    git_sha1 = None if sibling.lfs else sibling.blob_id
    if sibling.size is None or not (sha256 or git_sha1):
        raise _no_base(repository, revision, f"the hub gives no size and hash of {sibling.rfilename}, so it could not be checked")
    if sha256 and not SHA256.fullmatch(sha256):
        raise _no_base(repository, revision, f"the hub gives {sha256!r} as the sha256 of {sibling.rfilename}")
    return _HubFile(sibling.rfilename, sibling.size, sha256, git_sha1)


def _fetch_all(repository: str, commit: str, announced: list[_HubFile], progress: Progress) -> dict[str, Path]:
    from huggingface_hub import constants

    total = sum(file.size_bytes for file in announced) or 1
    done = 0
    ready = {file.name: path for file in announced if (path := _find_cached(repository, commit, file)) is not None}
    missing_bytes = sum(file.size_bytes for file in announced if file.name not in ready)
    free_disk(Path(constants.HF_HUB_CACHE), missing_bytes, f"downloading {repository}")
    for file in announced:
        if file.name not in ready:

            def report(got: int, name: str = file.name, before: int = done) -> None:
                progress(f"downloading {name}", min(1.0, (before + got) / total))

            ready[file.name] = _download(repository, commit, file, report)
        done += file.size_bytes
    return {file.name: ready[file.name] for file in announced}


def _find_cached(repository: str, commit: str, file: _HubFile) -> Path | None:
    """The file in the hub cache, if it is there and whole; a broken one is removed, to be downloaded again."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, file.name, revision=commit)
    if not isinstance(found, str):
        return None
    fault = _fault(Path(found), file)
    if fault is None:
        return Path(found)
    logger.warning("%s: %s; downloading it again", found, fault)
    _remove(Path(found))
    return None


def _remove(pointer: Path) -> None:
    """Delete a file of the hub cache with the links that lead to it: from a snapshot to a blob, and to a store that all models share."""
    while pointer.is_symlink():
        target = pointer.parent / pointer.readlink()
        pointer.unlink()
        pointer = target
    pointer.unlink(missing_ok=True)


def _fault(path: Path, file: _HubFile) -> str | None:
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


def _download(repository: str, commit: str, file: _HubFile, report: Callable[[int], None]) -> Path:
    import httpx
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled

    bar = _bar_class(report)
    try:
        verified = file.sha256 is not None and _download_large(repository, commit, file, bar)
        # For a large file the blob is there by now, and this names it in the commit's snapshot.
        path = Path(hf_hub_download(repository, file.name, revision=commit, endpoint=constants.ENDPOINT, tqdm_class=bar))
    except HfHubHTTPError as error:
        raise _no_base(repository, commit, f"{file.name}: {_explain(error, repository, commit)}") from error
    except (httpx.HTTPError, OfflineModeIsEnabled, EntryNotFoundError) as error:
        raise _no_base(repository, commit, f"{file.name}: {error}; run again to resume the download") from error
    except OSError as error:
        if error.errno is not None:
            raise  # the disk, not the hub
        raise _no_base(repository, commit, f"{file.name}: {error}") from error
    fault = None if verified else _fault(path, file)
    if fault is not None:
        _remove(path)
        raise _no_base(repository, commit, f"{file.name}: the download {fault}, and was deleted")
    return path


def _download_large(repository: str, commit: str, file: _HubFile, bar: type) -> bool:
    """Download a file to the hub cache's blobs, from where an earlier process stopped; True once it is hashed, False if it was there."""
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.file_download import http_get, repo_folder_name
    from huggingface_hub.utils import build_hf_headers

    blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model") / "blobs"
    blob = blobs / str(file.sha256)
    if blob.exists():
        return False
    blobs.mkdir(parents=True, exist_ok=True)
    # Named by its content: what is there can only be the beginning of the same bytes.
    partial = blobs / f"{file.sha256}.optbench.incomplete"
    with partial.open("ab") as target:
        fcntl.flock(target, fcntl.LOCK_EX)  # another run may be downloading it; the kernel frees the lock of a killed one
        if blob.exists():
            partial.unlink(missing_ok=True)
            return False
        if target.seek(0, os.SEEK_END) > file.size_bytes:
            target.truncate(0)
            target.seek(0)
        # A compressed transfer could not be resumed at a byte.
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        url = hf_hub_url(repository, file.name, revision=commit, endpoint=constants.ENDPOINT)
        http_get(url, target, resume_size=target.tell(), headers=headers, expected_size=file.size_bytes, tqdm_class=bar)
        target.flush()
        fault = _fault(partial, file)
        if fault is not None:
            partial.unlink()
            raise _no_base(repository, commit, f"{file.name}: the download {fault}, and was deleted; run again")
        partial.replace(blob)
    return True


def _bar_class(report: Callable[[int], None]) -> type:
    """A stand-in for tqdm, through which huggingface_hub reports progress; it draws nothing."""

    class Bar(AbstractContextManager[Any]):
        def __init__(self, *_: object, initial: int = 0, **__: object) -> None:
            self.got = initial

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, size_bytes: float | None = 1) -> None:
            self.got += int(size_bytes or 0)
            report(self.got)

    return Bar


@contextmanager
def _quiet_library() -> Iterator[None]:
    """Keep huggingface_hub's log off stderr; the errors raised here say what matters."""
    library = logging.getLogger("huggingface_hub")
    level = library.level
    library.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        library.setLevel(level)


def _explain(error: Any, repository: str, revision: str | None) -> str:
    """What a hub's refusal means, and what to do about it."""
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
        f"hub:{repository}: {reason}. Two alternatives: a copy downloaded elsewhere (hf download {repository}{pin} --local-dir DIR) for "
        "init DIR or apply --base path:DIR, or apply --weights random for true latency without accuracy"
    )


def find_in_cache(repository: str, revision: str | None) -> Path | None:
    """The folder of a model in the hub cache; None where it is not there. Asks no hub."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repository, "config.json", revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def _from_cache(repository: str, revision: str | None, reason: str, cause: Exception) -> HubFiles:
    """The model as the hub cache has it; `reason` says why the hub cannot be asked."""
    folder = find_in_cache(repository, revision)
    try:
        files = find_files(folder) if folder is not None else {}
    except BaseModelError:
        files = {}
    if not files:
        raise _no_base(repository, revision, reason) from cause
    for path in files.values():
        # A blob's name is its hash; a cache without links says nothing of a file's hash.
        blob = path.readlink().name if path.is_symlink() else ""
        sha256, git_sha1 = (blob if pattern.fullmatch(blob) else None for pattern in (SHA256, COMMIT))
        if (sha256 or git_sha1) and (fault := _fault(path, _HubFile(path.name, path.stat().st_size, sha256, git_sha1))):
            raise _no_base(repository, revision, f"{path} {fault}, and the hub cannot be reached to download it again: delete it")
    warning = f"hub:{repository}: {reason}; taken from the hub cache, which may lack small files"
    logger.warning("%s", warning)
    return HubFiles(files, files["config.json"].parent.name, [warning])
