"""An OCI registry, `oci://host/name:tag`: one layer per file, with the file name as its title as in oras; the tag is set last.

Blobs are stored under their sha256, so no file is uploaded twice, and an interrupted publication resumes with the next file. Credentials
are those of `docker login` or `oras login`.
"""

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

from optbench.artifact.manifest import MANIFEST_BYTES_MAX, FileEntry
from optbench.errors import PublishError
from optbench.publish.base import Bundle, Destination, Progress, Uploaded, shown, too_large
from optbench.publish.oci_client import load_login, make_client

__all__ = ["Registry"]

# host[:port]/name[/name]...:tag, by the distribution spec 1.1 and Docker's rule for hosts.
ADDRESS = re.compile(
    r"oci://(?P<host>[A-Za-z0-9.-]+(:[0-9]+)?)/(?P<name>[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*)"
    r":(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127})"
)
TITLE = "org.opencontainers.image.title"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPE = "application/vnd.optbench.artifact.v1"
LAYER_TYPE = "application/octet-stream"
# The image spec's config for artifacts without one: the two bytes {}.
EMPTY_DIGEST = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
EMPTY = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": EMPTY_DIGEST, "size": 2}
CHUNK_BYTES = 64 * 1024 * 1024
# At most this much is downloaded again after a connection breaks.
BLOCK_BYTES = 1 << 16


class Registry(Destination):
    """A tag in a registry's repository."""

    def __init__(self, url: str) -> None:
        """Parse the address.

        Raises:
            PublishError: not such an address, or oras is not installed.
        """
        match = ADDRESS.fullmatch(url)
        if match is None:
            raise PublishError(f"{shown(url)}: not a registry address; write oci://host/name:tag, with the name in lower case")
        self.url = url
        self._host = host = match["host"]
        try:
            self._oras: Any = make_client(host)
        except ImportError as error:
            raise PublishError(f"{url}: oras is not installed; run pip install 'optbench[publish]'") from error
        self._target: Any = self._oras.get_container(f"{host}/{match['name']}:{match['tag']}")
        self._base = f"{self._oras.prefix}://{host}/v2/{match['name']}"
        self._tag = match["tag"]
        self._layers: dict[str, dict[str, Any]] | None = None
        self._logged_in = False

    @contextmanager
    def _talking(self, what: str) -> Iterator[None]:
        import requests

        try:
            if not self._logged_in:
                load_login(self._oras, self._target)
                self._logged_in = True
            yield
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            raise PublishError(
                f"{self.url}: {what}: the connection to the registry {self._host} failed ({_root(error)}); check its address, the network, "
                "the proxy and the certificate, then run again to resume"
            ) from error
        except (requests.RequestException, OSError, ValueError) as error:
            raise PublishError(f"{self.url}: {what}: {error}; fix that and run again to resume") from error

    def _request(self, method: str, path: str, **options: Any) -> Any:
        """Send a request to the repository; error statuses raise a ValueError, except 404."""
        response = self._oras.do_request(f"{self._base}/{path}", method, **options)
        if response.status_code >= 400 and response.status_code != 404:
            raise ValueError(f"the registry answers {response.status_code} {response.reason}")
        return response

    def _published(self) -> dict[str, dict[str, Any]]:
        """The layers of the tag by title; empty if the tag does not exist."""
        if self._layers is None:
            with self._talking("its manifest cannot be read"):
                response = self._request("GET", f"manifests/{self._tag}", headers={"Accept": MANIFEST_TYPE}, stream=True)
                if response.status_code == 404:
                    return {}
                document = json.loads(_bounded(response, MANIFEST_BYTES_MAX, self.url))
            layers = document.get("layers") if isinstance(document, dict) else None
            if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
                raise PublishError(f"{self.url}: not an image manifest; choose a tag that optbench published")
            self._layers = {str((layer.get("annotations") or {}).get(TITLE)): layer for layer in layers}
        return self._layers

    def read(self, name: str, bytes_max: int) -> bytes | None:
        """See the base class."""
        layer = self._published().get(name)
        if layer is None:
            return None
        with self._talking(f"{name} cannot be read"):
            response = self._request("GET", f"blobs/{layer.get('digest')}", stream=True)
            if response.status_code == 404:
                raise PublishError(f"{self.url}: the blob of {name} is missing; publish it again")
            return _bounded(response, bytes_max, f"{self.url} {name}")

    def _has(self, digest: str) -> bool:
        return bool(self._request("HEAD", f"blobs/{digest}").status_code == 200)

    def missing(self, bundle: Bundle) -> list[str]:
        """See the base class."""
        with self._talking("cannot be reached"):
            return [name for name, entry in bundle.files.items() if not self._has(f"sha256:{entry.sha256}")]

    def _image_manifest(self, bundle: Bundle) -> dict[str, Any]:
        """The image manifest; equal bundles have equal manifests."""
        layers = [
            {"mediaType": LAYER_TYPE, "digest": f"sha256:{entry.sha256}", "size": entry.size_bytes, "annotations": {TITLE: name}}
            for name, entry in bundle.files.items()
        ]
        annotations = {TITLE: bundle.title, **bundle.labels}
        return {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": EMPTY,
            "layers": layers,
            "annotations": annotations,
        }

    def upload(self, bundle: Bundle, names: Sequence[str], progress: Progress) -> Uploaded:
        """See the base class."""
        total = sum(bundle.files[name].size_bytes for name in names) or 1
        done = 0
        for name in names:
            progress(f"sending {name}", done / total)
            entry = bundle.files[name]
            with self._talking(f"{name} could not be sent"):
                self._send_blob(str(bundle.path(name)), f"sha256:{entry.sha256}", entry.size_bytes)
            done += entry.size_bytes
        tagged = [(title, layer.get("digest")) for title, layer in self._published().items()]
        if tagged != [(name, f"sha256:{entry.sha256}") for name, entry in bundle.files.items()]:
            with self._talking("the tag could not be set"):
                if not self._has(EMPTY_DIGEST):
                    with tempfile.NamedTemporaryFile() as file:
                        file.write(b"{}")
                        file.flush()
                        self._send_blob(file.name, EMPTY_DIGEST, 2)
                response = self._oras.upload_manifest(self._image_manifest(bundle), self._target)
                if response.status_code >= 400:
                    raise ValueError(f"the registry answers {response.status_code} {response.reason}: {response.text[:200]}")
            self._layers = None
        return Uploaded(tuple(names), self.url)

    def _send_blob(self, path: str, digest: str, size_bytes: int) -> None:
        layer = {"digest": digest, "size": size_bytes, "mediaType": LAYER_TYPE}
        if size_bytes > CHUNK_BYTES:
            # put_upload reads the whole file into memory.
            response = self._oras.chunked_upload(path, self._target, layer, chunk_size=CHUNK_BYTES)
        else:
            response = self._oras.put_upload(path, self._target, layer)
        if response.status_code >= 400:
            raise ValueError(f"the registry answers {response.status_code} {response.reason}: {response.text[:200]}")

    def download(self, name: str, entry: FileEntry, file: BinaryIO, report: Callable[[int], None]) -> None:
        """See the base class."""
        offset = file.tell()
        with self._talking(f"{name} cannot be read"):
            # A compressed response could not resume at a byte offset.
            headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
            response = self._request("GET", f"blobs/sha256:{entry.sha256}", headers=headers, stream=True)
            if response.status_code == 404:
                raise PublishError(f"{self.url}: the blob of {name} is missing; publish it again")
            if offset and response.status_code != 206:  # the server sends the whole file: start over
                file.seek(0)
                file.truncate()
            for block in response.iter_content(BLOCK_BYTES):
                file.write(block[: max(0, entry.size_bytes - file.tell())])
                report(file.tell())


def _root(error: BaseException) -> str:
    """The operating system's message under the libraries' exceptions, which hide it three layers deep."""
    found = ""
    below: BaseException | None = error
    while below is not None:
        found = (isinstance(below, OSError) and below.strerror) or found
        below = below.__cause__ or below.__context__
    return found or "closed by the other side"


def _bounded(response: Any, bytes_max: int, where: str) -> bytes:
    content = b""
    for block in response.iter_content(BLOCK_BYTES):
        content += block
        if len(content) > bytes_max:
            raise too_large(where, bytes_max)
    return content
