"""A Hugging Face hub on loopback: the part of its HTTP protocol that huggingface_hub 1.x uses to fetch a model.

`GET /api/models/{id}[/revision/{revision}]?blobs=true` lists the files; `HEAD` and `GET /{id}/resolve/{revision}/{file}`
give one. As on the real hub, a large (LFS) file is answered with a redirect to a content host that honors `Range`.
"""

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LFS_BYTES_MIN = 2048


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Repository:
    """One model: a commit, the names that lead to it, and its files.

    Attributes:
        gated: answered 403 with the hub's code unless the token is `accepted`.
        card: the front matter of the model's card, as the listing repeats it.
        announced: other content than what is sent, for the hashes that the listing gives.
        faults: per file, what to do with its next requests for content: `cut:N` sends N bytes and closes, `stall:N` sends N bytes and
            waits until the server closes, `status:N` refuses.
    """

    commit: str
    files: dict[str, bytes]
    refs: tuple[str, ...] = ("main",)
    gated: bool = False
    card: dict[str, Any] = field(default_factory=dict)
    announced: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class HubServer:
    """The server; `repositories` and `requests` belong to the test, and so does `listing`: what to answer instead of a list."""

    listing: bytes | None = None

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.stalled, self.closing = threading.Event(), threading.Event()
        hub = self

        class OfThisHub(self.handler()):  # type: ignore[misc]
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), OfThisHub)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{port}"
        self.content_url = f"http://localhost:{port}"  # another host by name, as the real one is: tokens must not go there

    @staticmethod
    def handler() -> type["Handler"]:
        """What answers; a hub that takes more requests has another."""
        return Handler

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def content_requests(self, name: str) -> list[Request]:
        """The requests for a large file's bytes, in order."""
        return [request for request in self.requests if request.path.startswith("/content/") and f"/{name}/" in request.path]


class Handler(BaseHTTPRequestHandler):
    server_hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def _route(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server_hub.requests.append(Request(self.command, path, {key.lower(): value for key, value in self.headers.items()}))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._list(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], match[2], match[3])
        elif match := re.fullmatch(r"/content/([^/]+/[^/]+)/(.+)/([0-9a-f]{64})", path):
            self._send_file(self.server_hub.repositories[match[1]], match[2])
        else:
            self._refuse(404, "NotFound")

    def _find(self, name: str, revision: str) -> Repository | None:
        repository = self.server_hub.repositories.get(name)
        if repository is None:
            self._refuse(401, "RepoNotFound")
        elif repository.gated and self.headers.get("Authorization") != "Bearer accepted":
            self._refuse(403, "GatedRepo")
        elif revision not in repository.refs and not repository.commit.startswith(revision):
            self._refuse(404, "RevisionNotFound")
        else:
            return repository
        return None

    def _list(self, name: str, revision: str) -> None:
        repository = self._find(name, revision)
        if repository is None:
            return
        siblings = []
        for file, sent in repository.files.items():
            content = repository.announced.get(file, sent)
            entry: dict[str, Any] = {"rfilename": file, "size": len(content), "blobId": git_sha1(content)}
            if len(content) >= LFS_BYTES_MIN:
                entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        body = {"_id": "0", "id": name, "sha": repository.commit, "private": False, "tags": [], "downloads": 0, "siblings": siblings}
        body["cardData"] = repository.card
        self._send(200, self.server_hub.listing or json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _resolve(self, name: str, revision: str, file: str) -> None:
        repository = self._find(name, revision)
        if repository is None:
            return
        if file not in repository.files:
            self._refuse(404, "EntryNotFound", {"X-Repo-Commit": repository.commit})
            return
        content = repository.announced.get(file, repository.files[file])
        headers = {"X-Repo-Commit": repository.commit, "Accept-Ranges": "bytes"}
        if len(content) < LFS_BYTES_MIN:
            self._send_file(repository, file, {**headers, "ETag": f'"{git_sha1(content)}"'})
            return
        digest = hashlib.sha256(content).hexdigest()
        headers |= {
            "X-Linked-Etag": f'"{digest}"',
            "X-Linked-Size": str(len(content)),
            "Location": f"{self.server_hub.content_url}/content/{name}/{file}/{digest}",
        }
        self._send(302, b"", headers)

    def _send_file(self, repository: Repository, file: str, headers: dict[str, str] | None = None) -> None:
        content = repository.files[file]
        faults = repository.faults.get(file, [])
        fault = faults.pop(0) if faults and self.command == "GET" else ""
        if fault.startswith("status:"):
            self._refuse(int(fault.removeprefix("status:")), "")
            return
        first = 0
        status = 200
        headers = dict(headers or {})
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            first, status = int(match[1]), 206
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        cut = int(fault.partition(":")[2]) if fault else None
        self._send(status, content[first:], headers, cut)
        if fault.startswith("stall:"):
            self.server_hub.stalled.set()
            self.server_hub.closing.wait(60)

    def _send(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True

    def _refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})})
