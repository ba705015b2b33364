"""A hub on loopback that takes commits too: the part of the protocol that huggingface_hub 1.x publishes with.

`preupload` says which files are large, the LFS batch call which of those the hub lacks, each is PUT, and one `commit` names them
all. Repositories, tags and pull requests are made by their own calls. As on the real hub, a large file that was PUT stays,
whether a commit follows or not.
"""

import base64
import hashlib
import json
import re
import threading
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub_server import LFS_BYTES_MIN, Handler, HubServer, Repository, Request, git_sha1

__all__ = ["WritableHub"]


class WritableHub(HubServer):
    """Attributes that belong to the test.

    Attributes:
        blobs: large files by sha256, committed or not.
        tags: of each repository, commit by name.
        pull_requests: files of each, in order.
        refuse_blobs_after: answer 403 to further large files once there are so many; None never does.
        ignored: names that the repository's .gitignore leaves out.
    """

    @staticmethod
    def handler() -> type[Handler]:
        return _WritingHandler

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.blobs: dict[str, bytes] = {}
        self.tags: dict[str, dict[str, str]] = {}
        self.pull_requests: list[dict[str, bytes]] = []
        self.refuse_blobs_after: int | None = None
        self.ignored: frozenset[str] = frozenset()
        super().__init__()

    def bodies_sent(self) -> list[str]:
        """The paths of the requests that carried files."""
        return [each.path for each in self.requests if each.path.startswith("/lfs/") or "/commit/" in each.path]


class _WritingHandler(Handler):
    server_hub: WritableHub

    def do_POST(self) -> None:  # noqa: N802  # the names that http.server calls
        self._write()

    def do_PUT(self) -> None:  # noqa: N802
        self._write()

    def do_DELETE(self) -> None:  # noqa: N802
        self._write()

    def do_GET(self) -> None:  # noqa: N802
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/refs", urlsplit(self.path).path):
            tags = [
                {"name": name, "ref": f"refs/tags/{name}", "targetCommit": commit}
                for name, commit in self.server_hub.tags.get(match[1], {}).items()
            ]
            self._answer({"branches": [], "converts": [], "tags": tags})
        else:
            self._route()

    def _answer(self, document: Any, status: int = 200) -> None:
        self._send(status, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _write(self) -> None:
        hub, content = self.server_hub, self._body()
        path, query = unquote(urlsplit(self.path).path), parse_qs(urlsplit(self.path).query)
        hub.requests.append(Request(self.command, path, {key.lower(): value for key, value in self.headers.items()}))
        if path.startswith("/lfs/"):
            self._take_blob(path.removeprefix("/lfs/"), content)
        elif self.headers.get("Authorization") != "Bearer accepted":
            self._refuse(401, "")
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            asked = json.loads(content)
            name = f"{asked['organization']}/{asked['name']}"
            hub.repositories.setdefault(name, Repository("0" * 40, {}))
            self._answer({"url": f"{hub.url}/{name}", "name": name})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/.+", path):
            self._answer({"files": [self._mode(match[1], file) for file in json.loads(content)["files"]]})
        elif re.fullmatch(r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            self._answer({"transfer": "basic", "objects": [self._blob_action(each) for each in json.loads(content)["objects"]]})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/.+", path):
            self._commit(match[1], content, create_pr="1" in query.get("create_pr", []))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tag/(.+)", path):
            self._tag(match[1], match[2], content)
        else:
            self._refuse(404, "NotFound")

    def _mode(self, name: str, file: dict[str, Any]) -> dict[str, Any]:
        there = self.server_hub.repositories[name].files.get(file["path"])
        large = file["size"] >= LFS_BYTES_MIN
        oid = None if there is None else hashlib.sha256(there).hexdigest() if large else git_sha1(there)
        ignored = file["path"] in self.server_hub.ignored
        return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": ignored, "oid": oid}

    def _blob_action(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if wanted["oid"] in self.server_hub.blobs:
            return wanted
        return {**wanted, "actions": {"upload": {"href": f"{self.server_hub.url}/lfs/{wanted['oid']}"}}}

    def _take_blob(self, oid: str, content: bytes) -> None:
        hub = self.server_hub
        assert hashlib.sha256(content).hexdigest() == oid
        with hub.lock:  # several files come at once
            taken = hub.refuse_blobs_after is None or len(hub.blobs) < hub.refuse_blobs_after
            if taken:
                hub.blobs[oid] = content
        if not taken:
            self._refuse(403, "")
            return
        self._send(200, b"", {})

    def _commit(self, name: str, content: bytes, *, create_pr: bool) -> None:
        hub = self.server_hub
        repository = hub.repositories[name]
        files = dict(repository.files)
        for line in content.decode().splitlines():
            value, key = json.loads(line)["value"], json.loads(line)["key"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = hub.blobs[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        commit = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        answer = {"commitUrl": f"{hub.url}/{name}/commit/{commit}", "commitOid": commit}
        if create_pr:
            hub.pull_requests.append(files)
            answer["pullRequestUrl"] = f"{hub.url}/{name}/discussions/{len(hub.pull_requests)}"
        else:
            repository.files, repository.commit = files, commit
        self._answer(answer)

    def _tag(self, name: str, target: str, content: bytes) -> None:
        tags = self.server_hub.tags.setdefault(name, {})
        if self.command == "DELETE":
            del tags[target]
        else:
            tags[json.loads(content)["tag"]] = target
        self._send(200, b"", {})
