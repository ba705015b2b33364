"""A Hugging Face hub, `hf://org/name`: all files in one commit, which is tagged with the recipe's hash.

huggingface_hub does the work, and finds the endpoint and the token: `HF_ENDPOINT`, `HF_TOKEN`, `hf auth login`. Large files are uploaded
before the commit, under their sha256, so an interrupted publication resumes with the next file.
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from optbench.artifact.manifest import FileEntry
from optbench.errors import PublishError
from optbench.publish.base import Bundle, Destination, Progress, Uploaded, shown, too_large

__all__ = ["RECIPE_LABEL", "Hub"]

ADDRESS = re.compile(r"hf://(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*)(@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]*))?")
RECIPE_LABEL = "dev.optbench.recipe"
BLOCK_BYTES = 1 << 20
TIMEOUT_S = 30.0


class Hub(Destination):
    """A model repository on a hub, at a revision: `main` when the address has none."""

    def __init__(self, url: str, *, pull_request: bool = False) -> None:
        """Parse the address; `pull_request` uploads to a new pull request instead of the branch.

        Raises:
            PublishError: not `hf://org/name` or `hf://org/name@revision`.
        """
        match = ADDRESS.fullmatch(url)
        if match is None:
            raise PublishError(f"{shown(url)}: not a hub address; write hf://org/name or hf://org/name@revision")
        self.url, self._name, self._revision = url, match["name"], match["revision"]
        self._pull_request = pull_request
        self._commit: str | None = None

    @property
    def _api(self) -> Any:
        from huggingface_hub import HfApi, constants

        return HfApi(endpoint=constants.ENDPOINT)

    @contextmanager
    def _talking(self, what: str) -> Iterator[None]:
        """Translate the library's errors, and keep its log and progress bars off stderr."""
        import httpx
        from huggingface_hub import constants
        from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
        from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

        library = logging.getLogger("huggingface_hub")
        level, bars = library.level, not are_progress_bars_disabled()
        library.setLevel(logging.CRITICAL)
        disable_progress_bars()
        try:
            yield
        except HfHubHTTPError as error:
            status = error.response.status_code
            cure = "check HF_TOKEN and its write permission" if status in (401, 403) else "fix that and run again"
            message = error.server_message or error.response.reason_phrase
            raise PublishError(f"{self.url}: {what}: {constants.ENDPOINT} answers {status} {message}; {cure}") from error
        except LocalTokenNotFoundError as error:
            raise PublishError(f"{self.url}: {what}: no token; set HF_TOKEN or run hf auth login") from error
        except (httpx.HTTPError, OSError, ValueError, RuntimeError) as error:
            # The library wraps the reason why a large file was refused in "Error while uploading".
            reason = f"{error} {error.__cause__ or ''}".strip()
            raise PublishError(f"{self.url}: {what}: {reason}; fix that and run again to resume") from error
        finally:
            library.setLevel(level)
            if bars:
                enable_progress_bars()

    def _find_commit(self) -> str | None:
        """The revision's commit, looked up once; None without such a repository or revision."""
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        if self._commit is None:
            with self._talking("cannot be reached"):
                try:
                    info = self._api.model_info(self._name, revision=self._revision, timeout=TIMEOUT_S)
                except GatedRepoError:
                    raise
                except (RepositoryNotFoundError, RevisionNotFoundError):
                    return None
                self._commit = str(info.sha)
        return self._commit

    @contextmanager
    def _opened(self, name: str, offset: int) -> Iterator[Any]:
        """A file of the commit, as a response to read block by block."""
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session

        url = hf_hub_url(self._name, name, revision=self._find_commit(), endpoint=constants.ENDPOINT)
        # A compressed response could not resume at a byte offset.
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
        # httpx does not send the token to the host that serves large files.
        with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=TIMEOUT_S) as response:
            yield response

    def read(self, name: str, bytes_max: int) -> bytes | None:
        """See the base class."""
        if self._find_commit() is None:
            return None
        content = b""
        with self._talking(f"{name} cannot be read"), self._opened(name, 0) as response:
            if response.status_code == 404:
                return None
            response.raise_for_status()
            for block in response.iter_bytes(BLOCK_BYTES):
                content += block
                if len(content) > bytes_max:
                    raise too_large(f"{self.url} {name}", bytes_max)
        return content

    def _published(self) -> dict[str, Any]:
        """The library's description of every file at the revision, by name."""
        commit = self._find_commit()
        if commit is None:
            return {}
        with self._talking("cannot be listed"):
            info = self._api.model_info(self._name, revision=commit, files_metadata=True, timeout=TIMEOUT_S)
        return {each.rfilename: each for each in info.siblings or ()}

    def missing(self, bundle: Bundle) -> list[str]:
        """See the base class."""
        published = self._published()
        return [name for name, entry in bundle.files.items() if not _is_same(published.get(name), entry, bundle.path(name))]

    def upload(self, bundle: Bundle, names: Sequence[str], progress: Progress) -> Uploaded:
        """See the base class."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        published = self.read_manifest()
        stale = sorted((published.files.keys() if published else set()) - bundle.files.keys())
        where = self._find_commit() or ""
        if names or stale:
            progress(f"sending {len(names)} files", None)
            operations = [CommitOperationAdd(name, str(bundle.path(name))) for name in names]
            operations += [CommitOperationDelete(name) for name in stale]
            with self._talking("publishing stopped"):
                if where == "":
                    # Private until its owner makes it public.
                    self._api.create_repo(self._name, private=True, exist_ok=True)
                # Not HfApi.upload_folder: with hf_xet it commits a large folder in several parts, and a pull between two would find a
                # manifest that does not match the files.
                info = self._api.create_commit(
                    self._name, operations, commit_message=bundle.title, revision=self._revision, create_pr=self._pull_request or None
                )
            where, self._commit = str(info.oid), None
            if self._pull_request:
                return Uploaded(tuple(names), str(info.pr_url or info.commit_url))
            if ignored := self.missing(bundle):
                raise PublishError(f"{self.url}: the hub ignored {', '.join(ignored)}; remove them from its .gitignore and run again")
        self._tag(bundle, where)
        return Uploaded(tuple(names), where)

    def _tag(self, bundle: Bundle, commit: str) -> None:
        """Point the recipe's tag to the commit."""
        recipe = bundle.labels.get(RECIPE_LABEL)
        if recipe is None or self._pull_request:
            return
        tag = f"recipe-{recipe[:16]}"
        with self._talking("the tag could not be set"):
            there = {each.name: each.target_commit for each in self._api.list_repo_refs(self._name).tags}
            if there.get(tag) == commit:
                return
            if tag in there:  # another machine or other library versions produced different bytes
                self._api.delete_tag(self._name, tag=tag)
            self._api.create_tag(self._name, tag=tag, revision=commit)

    def download(self, name: str, entry: FileEntry, file: BinaryIO, report: Callable[[int], None]) -> None:
        """See the base class."""
        offset = file.tell()
        with self._talking(f"{name} cannot be read"), self._opened(name, offset) as response:
            response.raise_for_status()
            if offset and response.status_code != 206:  # the server sends the whole file: start over
                file.seek(0)
                file.truncate()
            for block in response.iter_bytes():  # block sizes as received: a broken connection loses nothing that arrived
                file.write(block[: max(0, entry.size_bytes - file.tell())])
                report(file.tell())


def _is_same(published: Any, entry: FileEntry, path: Path) -> bool:
    """Whether a file at the hub, described by the library, has the content of a local one."""
    from huggingface_hub.utils.sha import git_hash

    if published is None or published.size != entry.size_bytes:
        return False
    if published.lfs:
        return bool(published.lfs.sha256 == entry.sha256)
    return bool(published.blob_id == git_hash(path.read_bytes()))
