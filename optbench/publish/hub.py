"""A Hugging Face hub, `hf://org/name`: all files in one commit, which is tagged with the recipe's hash.

`HF_ENDPOINT`, `HF_TOKEN` and `hf auth login` mean what they mean to huggingface_hub, which does the work. Large files go over
before the commit and are named by their sha256, so a publication that was cut goes on with the next one.
"""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from optbench.artifact.folder import MANIFEST, FileEntry
from optbench.errors import PublishError
from optbench.publish.base import Bundle, Destination, Progress, Uploaded, shown, too_large

__all__ = ["RECIPE_LABEL", "Hub"]

ADDRESS = re.compile(r"hf://(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*)(@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]*))?")
RECIPE_LABEL = "dev.optbench.recipe.schema"
BLOCK_BYTES = 1 << 20
TIMEOUT_S = 30.0


class Hub(Destination):
    """A model repository on a hub, at a revision: `main` when the address has none."""

    def __init__(self, url: str, *, pull_request: bool = False) -> None:
        """Parse the address.

        Args:
            url: `hf://org/name`, with `@revision` perhaps.
            pull_request: commit to a new pull request and not to the branch.

        Raises:
            PublishError: it is no such address.
        """
        match = ADDRESS.fullmatch(url)
        if match is None:
            raise PublishError(f"{shown(url)}: is no hub address; write hf://org/name or hf://org/name@revision")
        self.url, self._name, self._revision = url, match["name"], match["revision"]
        self._pull_request = pull_request
        self._commit: str | None = None

    @property
    def _api(self) -> Any:
        from huggingface_hub import HfApi, constants

        return HfApi(endpoint=constants.ENDPOINT)

    @contextmanager
    def _talking(self, what: str) -> Iterator[None]:
        """Turn the library's errors into words, and keep its own off stderr."""
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
            cure = "check HF_TOKEN and that it may write there" if status in (401, 403) else "mend that and run again"
            message = error.server_message or error.response.reason_phrase
            raise PublishError(f"{self.url}: {what}: {constants.ENDPOINT} answers {status} {message}; {cure}") from error
        except LocalTokenNotFoundError as error:
            raise PublishError(f"{self.url}: {what}: no token; set HF_TOKEN or run hf auth login") from error
        except (httpx.HTTPError, OSError, ValueError, RuntimeError) as error:
            # A large file's refusal comes wrapped in "Error while uploading".
            reason = f"{error} {error.__cause__ or ''}".strip()
            raise PublishError(f"{self.url}: {what}: {reason}; mend that and run again: what went over stays") from error
        finally:
            library.setLevel(level)
            if bars:
                enable_progress_bars()

    def _find_commit(self) -> str | None:
        """The commit that the revision leads to now, looked up once; None where there is no repository or revision."""
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        if self._commit is None:
            with self._talking("cannot be asked"):
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
        """A file of the commit, as a response that is read bit by bit."""
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session

        url = hf_hub_url(self._name, name, revision=self._find_commit(), endpoint=constants.ENDPOINT)
        # Compressed on the way, a file could not be resumed at a byte.
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
        # httpx keeps the token from the host that a large file is redirected to.
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

    def _present(self) -> dict[str, tuple[int, str | None]]:
        """Size and, of a large file, sha256 of every file at the revision."""
        commit = self._find_commit()
        if commit is None:
            return {}
        with self._talking("cannot be listed"):
            info = self._api.model_info(self._name, revision=commit, files_metadata=True, timeout=TIMEOUT_S)
        siblings = info.siblings or []
        return {each.rfilename: (each.size, each.lfs.sha256 if each.lfs else None) for each in siblings}

    def missing(self, bundle: Bundle) -> list[str]:
        """See the base class."""
        present = self._present()
        published = self.read_manifest() if MANIFEST in present else None
        same = dict(published.files) if published else {}
        missing = []
        for name, entry in bundle.files.items():
            size_bytes, sha256 = present.get(name, (None, None))
            if name in bundle.files.keys() - same.keys() and sha256 is None:
                whole = size_bytes == entry.size_bytes and self.read(name, entry.size_bytes) == (bundle.folder / name).read_bytes()
            else:
                whole = size_bytes == entry.size_bytes and (sha256 or same[name].sha256) == entry.sha256
            if not whole:
                missing.append(name)
        return missing

    def upload(self, bundle: Bundle, progress: Progress) -> Uploaded:
        """See the base class."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        missing = self.missing(bundle)
        published = self.read_manifest() if MANIFEST in self._present() else None
        stale = sorted((published.files.keys() if published else set()) - bundle.files.keys())
        where = self._find_commit() or ""
        if missing or stale:
            progress(f"sending {len(missing)} files", None)
            operations = [CommitOperationAdd(name, str(bundle.folder / name)) for name in missing]
            operations += [CommitOperationDelete(name) for name in stale]
            with self._talking("publishing stopped"):
                if where == "":
                    # Private until its owner says otherwise.
                    self._api.create_repo(self._name, private=True, exist_ok=True)
                info = self._api.create_commit(
                    self._name, operations, commit_message=bundle.title, revision=self._revision, create_pr=self._pull_request or None
                )
            where, self._commit = str(info.oid), None
            if self._pull_request:
                return Uploaded(tuple(missing), str(info.pr_url or info.commit_url))
            if left := self.missing(bundle):
                raise PublishError(f"{self.url}: the hub did not take {', '.join(left)}: its .gitignore may name them")
        self._tag(bundle, where)
        return Uploaded(tuple(missing), where)

    def _tag(self, bundle: Bundle, commit: str) -> None:
        """Have the recipe's tag point to the commit."""
        recipe = bundle.labels.get(RECIPE_LABEL)
        if recipe is None or self._pull_request:
            return
        tag = f"recipe-{recipe[:16]}"
        with self._talking("the tag could not be set"):
            there = {each.name: each.target_commit for each in self._api.list_repo_refs(self._name).tags}
            if there.get(tag) == commit:
                return
            if tag in there:  # the recipe gave other bytes, on another machine or with other libraries
                self._api.delete_tag(self._name, tag=tag)
            self._api.create_tag(self._name, tag=tag, revision=commit)

    def download(self, name: str, entry: FileEntry, file: BinaryIO, report: Callable[[int], None]) -> None:
        """See the base class."""
        offset = file.tell()
        with self._talking(f"{name} cannot be read"), self._opened(name, offset) as response:
            response.raise_for_status()
            if offset and response.status_code != 206:  # it sends the whole file: begin anew
                file.seek(0)
                file.truncate()
            for block in response.iter_bytes():  # as they come: what came before a cut is kept
                file.write(block[: max(0, entry.size_bytes - file.tell())])
                report(file.tell())
