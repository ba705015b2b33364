"""Publishing and pulling: what goes out is cleared first, what comes in is verified before it is there.

A destination is one file of this folder and one line of `open_destination`.
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from optbench.artifact.folder import (
    MANIFEST,
    MANIFEST_BYTES_MAX,
    SIGNATURE,
    Artifact,
    FileEntry,
    Manifest,
    hash_file,
    open_artifact,
    parse_manifest,
)
from optbench.errors import ArtifactError, MachineError, PublishError
from optbench.machine.disk import free_disk, full_disk_errors
from optbench.machine.frozen import Frozen
from optbench.publish.base import SIGNATURE_BYTES_MAX, Destination, Progress, read_bundle
from optbench.publish.filesystem import FileSystem
from optbench.publish.gate import Clearance, clear, license_problem, published_record
from optbench.publish.hub import RECIPE_LABEL, Hub
from optbench.publish.oci import Registry
from optbench.publish.signature import check_signature, sign
from optbench.record.audit import audit, name_problems

__all__ = ["Clearance", "Published", "Pulled", "clear", "license_problem", "open_destination", "publish", "pull"]


class Published(Frozen):
    """What a publication did, or would do.

    Attributes:
        destination: where to.
        where: the address of just this publication: a commit, a tag, a folder.
        sha256: of the artifact.
        files: how many it has.
        sent: those whose bytes went over; the destination had the others already.
        sent_bytes: their size.
        signed: whether a signature is with it.
        dry_run: nothing was sent: `sent` is what would be.
    """

    destination: str
    where: str
    sha256: str
    files: int
    sent: tuple[str, ...]
    sent_bytes: int
    signed: bool
    dry_run: bool


class Pulled(Frozen):
    """What a pull brought.

    Attributes:
        source: where from.
        folder: where it lies now.
        sha256: of the artifact.
        files: how many it has.
        fetched_bytes: what came over; what an earlier pull had brought did not come again.
        signature: `verified`, `present, not checked`, or `none`.
    """

    source: str
    folder: str
    sha256: str
    files: int
    fetched_bytes: int
    signature: str


def open_destination(url: str, *, pull_request: bool = False) -> Destination:
    """The destination that an address names: `oci://`, `hf://`, else what fsspec knows, else a folder.

    Raises:
        PublishError: no such address.
    """
    if url.startswith("oci://"):
        return Registry(url)
    if url.startswith("hf://"):
        return Hub(url, pull_request=pull_request)
    if pull_request:
        raise PublishError(f"{url}: has no pull requests; leave --pull-request out, or name hf://org/name")
    return FileSystem(url)


def publish(
    folder: Path, destination: Destination, progress: Progress, *, sign_with: Path | None = None, dry_run: bool = False
) -> Published:
    """Send a folder that `clear` has cleared.

    Args:
        folder: the artifact.
        destination: where to.
        progress: told what is going over.
        sign_with: minisign's secret-key file; the signature stays in the folder too.
        dry_run: look what would go over, and send nothing.

    Raises:
        PublishError: the destination refuses or cannot be reached; what went over stays, and the next run goes on from there.
    """
    manifest = (folder / MANIFEST).read_bytes()
    record = published_record(folder)
    labels = {RECIPE_LABEL: record.recipe_sha256, "org.opencontainers.image.licenses": record.recipe.base.license}
    bundle = read_bundle(folder, manifest, labels)
    if sign_with is not None and not dry_run:
        (folder / SIGNATURE).write_bytes(sign(manifest, sign_with, bundle.title))
        bundle = read_bundle(folder, manifest, labels)
    if dry_run:
        sent, where = tuple(destination.missing(bundle)), destination.url
    else:
        uploaded = destination.upload(bundle, progress)
        sent, where = uploaded.sent, uploaded.where
    return Published(
        destination=destination.url,
        where=where,
        sha256=hashlib.sha256(manifest).hexdigest(),
        files=len(bundle.files),
        sent=sent,
        sent_bytes=sum(bundle.files[name].size_bytes for name in sent),
        signed=bundle.signature is not None or sign_with is not None,
        dry_run=dry_run,
    )


def pull(source: Destination, folder: Path, progress: Progress, *, public_key: str | None = None, sha256: str | None = None) -> Pulled:
    """Fetch an artifact; it appears at `folder` in one rename, once every byte is verified.

    What came before a connection broke lies in a folder beside `folder` and is gone on from.

    Args:
        source: where from.
        folder: where to; must not be there yet, unless it is this very artifact already.
        progress: told what is coming.
        public_key: the minisign key that must have signed it: a file, or its text.
        sha256: the hash that the artifact must have.

    Raises:
        PublishError: nothing is there, or not signed by that key, or another hash.
        ArtifactError: what is there is no artifact, or not what its manifest says.
        MachineError: the disk is full, or another pull to the same folder is at work.
    """
    content = source.read(MANIFEST, MANIFEST_BYTES_MAX)
    if content is None:
        raise PublishError(f"{source.url}: nothing is published there; check the address")
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and sha256 != found:
        raise PublishError(f"{source.url}: is artifact {found}, not {sha256}; do not use it")
    signature = source.read(SIGNATURE, SIGNATURE_BYTES_MAX)
    if public_key is not None:
        check_signature(content, signature, public_key, source.url)
    manifest = parse_manifest(content, f"{source.url}/{MANIFEST}")
    # Before a byte of the files is fetched.
    if problems := name_problems(manifest):
        raise ArtifactError(f"{source.url}: {'; '.join(problems)}; do not use it")
    state = "none" if signature is None else "verified" if public_key is not None else "present, not checked"
    fetched = 0
    if not _is_there(folder, found):
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = folder.parent / f".{folder.name}.pulling"
        try:
            with FileLock(f"{staging}.lock", timeout=0):
                fetched = _fetch_all(source, manifest, staging, progress)
                (staging / MANIFEST).write_bytes(content)
                if signature is not None:
                    (staging / SIGNATURE).write_bytes(signature)
                _take(staging, folder, source.url)
        except Timeout:
            raise MachineError(f"{staging}: another pull to {folder} is at work; wait for it") from None
        Path(f"{staging}.lock").unlink(missing_ok=True)
    return Pulled(source=source.url, folder=str(folder), sha256=found, files=len(manifest.files), fetched_bytes=fetched, signature=state)


def _is_there(folder: Path, sha256: str) -> bool:
    """Whether the folder is that artifact already.

    Raises:
        PublishError: something else is there.
    """
    if not folder.exists():
        return False
    try:
        if open_artifact(folder).sha256 == sha256:
            return True
    except ArtifactError:
        pass
    raise PublishError(f"{folder}: is there already and is not this artifact; name another folder, or move it away")


def _fetch_all(source: Destination, manifest: Manifest, staging: Path, progress: Progress) -> int:
    """Bring every file to the staging folder, going on with what an earlier pull left there; the bytes that came."""
    fetched, done, total = 0, 0, manifest.size_bytes or 1
    staging.mkdir(exist_ok=True)
    free_disk(staging, manifest.size_bytes, f"pulling {source.url}")
    # What belongs to another artifact, published there since, is not carried along.
    for path in [path for path in staging.rglob("*") if path.is_symlink() or path.is_file()]:
        if path.relative_to(staging).as_posix().removesuffix(".part") not in manifest.files:
            path.unlink()
    with full_disk_errors(staging):
        for name, entry in manifest.files.items():

            def report(got: int, name: str = name, before: int = done) -> None:
                progress(f"fetching {name}", (before + got) / total)

            fetched += _fetch(source, name, entry, staging / name, report)
            done += entry.size_bytes
    return fetched


def _fetch(source: Destination, name: str, entry: FileEntry, target: Path, report: Callable[[int], None]) -> int:
    if target.is_file() and target.stat().st_size == entry.size_bytes and hash_file(target) == entry.sha256:
        return 0
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.part")
    with partial.open("ab") as file:
        if file.tell() > entry.size_bytes:
            file.truncate(0)
        before = file.tell()
        source.download(name, entry, file, report)
        file.flush()
        os.fsync(file.fileno())
        came = file.tell() - before
    size_bytes, sha256 = partial.stat().st_size, hash_file(partial)
    if (size_bytes, sha256) != (entry.size_bytes, entry.sha256):
        if size_bytes == entry.size_bytes:
            partial.unlink()
            raise ArtifactError(f"{source.url}/{name}: has sha256 {sha256}, its manifest says {entry.sha256}; it was thrown away")
        raise PublishError(f"{source.url}/{name}: ended after {size_bytes} of {entry.size_bytes} bytes; run again to go on from there")
    partial.replace(target)
    return came


def _take(staging: Path, folder: Path, where: str) -> Artifact:
    """Look at the whole once more, as anybody would, and move it into place."""
    found = audit(staging)
    if found.problems:
        shutil.rmtree(staging)
        raise ArtifactError(f"{where}: {'; '.join(found.problems)}; do not use it")
    staging.rename(folder)
    return open_artifact(folder, verify=False)
