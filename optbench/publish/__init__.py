"""Publish artifacts to folders, object stores, hubs and registries, and pull them from there.

In: an artifact folder and an address. Out: the same files at the destination, once the artifact is cleared for publication; or a verified
copy in a local folder. Each destination is one file here and one line in `DESTINATIONS`.
"""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from filelock import FileLock, Timeout

from optbench.artifact.folder import hash_file, open_artifact
from optbench.artifact.manifest import MANIFEST, MANIFEST_BYTES_MAX, SIGNATURE, FileEntry, Manifest, parse_manifest
from optbench.errors import ArtifactError, MachineError, PublishError
from optbench.machine.disk import free_disk, full_disk_errors
from optbench.machine.frozen import Frozen
from optbench.publish.base import SIGNATURE_BYTES_MAX, Bundle, Destination, Progress, read_bundle
from optbench.publish.filesystem import FileSystem
from optbench.publish.gate import Clearance, clear, published_record
from optbench.publish.hub import RECIPE_LABEL, Hub
from optbench.publish.oci import Registry
from optbench.publish.signature import check_signature, secret_key, sign
from optbench.record.audit import audit, name_problems

if TYPE_CHECKING:
    from minisign import SecretKey

__all__ = ["Clearance", "Published", "Pulled", "clear", "open_destination", "publish", "pull", "secret_key"]


class Published(Frozen):
    """What a publication did, or would do.

    Attributes:
        where: the address of this publication: a commit, a tag, a folder.
        files: number of files.
        sent: names of the uploaded files; the destination already had the others.
        repaired: those of `sent` that the destination had with other bytes; found by reading every file there.
        compared: what the files already there were compared by: their `hashes`, or only their names and `sizes`.
        dry_run: nothing was sent; `sent` names what would be.
    """

    destination: str
    where: str
    sha256: str
    files: int
    sent: tuple[str, ...]
    repaired: tuple[str, ...]
    compared: Literal["hashes", "sizes"]
    sent_bytes: int
    signed: bool
    dry_run: bool


class Pulled(Frozen):
    """What a pull did.

    Attributes:
        files: number of files.
        fetched_bytes: bytes downloaded, without what an interrupted pull had left.
        signature: `verified`, `present, not checked`, or `none`.
    """

    source: str
    folder: str
    sha256: str
    files: int
    fetched_bytes: int
    signature: str


# By the scheme of an address; FileSystem takes every other address.
DESTINATIONS: dict[str, Callable[[str], Destination]] = {"hf": Hub, "oci": Registry}
# A URL with too few slashes, which would otherwise name a new local folder.
MISTYPED = re.compile(r"(?P<scheme>hf|oci|file|memory|s3a?|gc?s|az|abfss?|https?):/?(?P<rest>[^/].*)?")


def open_destination(url: str, *, pull_request: bool = False) -> Destination:
    """The destination at an address: a scheme of `DESTINATIONS`, any URL that fsspec supports, or a folder.

    Raises:
        PublishError: not such an address, or a destination without pull requests.
    """
    if (typo := MISTYPED.fullmatch(url)) and not Path(url).exists():
        raise PublishError(f"{url}: not an address; write {typo['scheme']}://{typo['rest'] or ''}, or ./{url} for a folder of that name")
    destination = DESTINATIONS.get(url.partition("://")[0], FileSystem)
    if not pull_request:
        return destination(url)
    if destination is not Hub:
        raise PublishError(f"{url}: has no pull requests; omit --pull-request, or publish to hf://org/name")
    return Hub(url, pull_request=True)


def publish(
    folder: Path,
    destination: Destination,
    progress: Progress,
    *,
    key: "SecretKey | None" = None,
    repair: bool = False,
    dry_run: bool = False,
) -> Published:
    """Upload a folder that `clear` has approved; with `dry_run`, only find out what would be sent.

    `key` signs it; only the destination gets the signature. `repair` reads every file that is already there and sends again what is
    damaged.

    Raises:
        PublishError: the destination refuses, cannot be reached, or keeps a damaged file; the next run resumes.
    """
    manifest = (folder / MANIFEST).read_bytes()
    record = published_record(folder)
    labels = {RECIPE_LABEL: record.recipe_sha256, "org.opencontainers.image.licenses": record.recipe.base.license}
    with tempfile.TemporaryDirectory(prefix="optbench-publish-") as scratch:
        bundle = read_bundle(folder, manifest, labels, Path(scratch))
        if key is not None:
            bundle = bundle.signed(sign(manifest, key, bundle.title))
        missing = destination.missing(bundle)
        if bundle.signature is None:
            bundle = _keep_signature(bundle, destination, missing)
        damaged = destination.damaged(bundle, [name for name in bundle.files if name not in missing], progress) if repair else []
        names = [name for name in bundle.files if name in {*missing, *damaged}]
        where = destination.url
        if not dry_run:
            where = destination.upload(bundle, names, progress).where
            if still := destination.damaged(bundle, damaged, progress):
                raise PublishError(
                    f"{destination.url}: keeps other bytes of {', '.join(still)} though it took these again; have its operator delete "
                    f"sha256 {bundle.files[still[0]].sha256}, or publish to another place"
                )
    return Published(
        destination=destination.url,
        where=where,
        sha256=hashlib.sha256(manifest).hexdigest(),
        files=len(bundle.files),
        sent=tuple(names),
        repaired=tuple(damaged),
        compared="hashes" if repair else destination.compares,
        sent_bytes=sum(bundle.files[name].size_bytes for name in names),
        signed=bundle.signature is not None,
        dry_run=dry_run,
    )


def _keep_signature(bundle: Bundle, destination: Destination, missing: list[str]) -> Bundle:
    """With the signature that an earlier publication of the same artifact has added there."""
    if MANIFEST in missing or destination.read(MANIFEST, MANIFEST_BYTES_MAX) != bundle.manifest:
        return bundle
    signature = destination.read(SIGNATURE, SIGNATURE_BYTES_MAX)
    return bundle if signature is None else bundle.signed(signature)


def pull(source: Destination, folder: Path, progress: Progress, *, public_key: str | None = None, sha256: str | None = None) -> Pulled:
    """Download an artifact. `folder` appears in one rename, once every file is verified.

    An interrupted pull leaves a folder beside `folder`, from which the next one resumes. `public_key`, a minisign file or its text,
    requires a signature by that key, and `sha256` that artifact.

    Raises:
        PublishError: nothing is published there, it has another signature or hash, or `folder` is something else.
        ArtifactError: what is published is not an artifact, or its files differ from its manifest.
        MachineError: the disk is full, or another pull to the same folder is running.
    """
    content = source.read(MANIFEST, MANIFEST_BYTES_MAX)
    if content is None:
        raise PublishError(f"{source.url}: nothing is published there; check the address")
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and sha256 != found:
        raise PublishError(f"{source.url}: sha256 is {found}, expected {sha256}; do not use it")
    signature = source.read(SIGNATURE, SIGNATURE_BYTES_MAX)
    if public_key is not None:
        check_signature(content, signature, public_key, source.url)
    manifest = parse_manifest(content, f"{source.url}/{MANIFEST}")
    # Checked before any file is downloaded.
    if problems := name_problems(manifest):
        raise ArtifactError(f"{source.url}: {'; '.join(problems)}; do not use it")
    state = "none" if signature is None else "verified" if public_key is not None else "present, not checked"
    fetched = 0
    if not _is_pulled(folder, found):
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = folder.parent / f".{folder.name}.pulling"
        try:
            with FileLock(f"{staging}.lock", timeout=0):
                fetched = _fetch_all(source, manifest, staging, progress)
                (staging / MANIFEST).write_bytes(content)
                if signature is not None:
                    (staging / SIGNATURE).write_bytes(signature)
                _move_verified(staging, folder, source.url)
        except Timeout:
            raise MachineError(f"{staging}: another pull to {folder} is running; wait for it") from None
        Path(f"{staging}.lock").unlink(missing_ok=True)
    return Pulled(source=source.url, folder=str(folder), sha256=found, files=len(manifest.files), fetched_bytes=fetched, signature=state)


def _is_pulled(folder: Path, sha256: str) -> bool:
    """Whether the folder already is that artifact; an error if it is something else."""
    if not folder.exists():
        return False
    try:
        if open_artifact(folder).sha256 == sha256:
            return True
    except ArtifactError:
        pass
    raise PublishError(f"{folder}: exists and is not this artifact; choose another folder, or move it away")


def _fetch_all(source: Destination, manifest: Manifest, staging: Path, progress: Progress) -> int:
    """Download every file to the staging folder, resuming from an interrupted pull; returns the number of bytes downloaded."""
    fetched, done, total = 0, 0, manifest.size_bytes or 1
    staging.mkdir(exist_ok=True)
    free_disk(staging, manifest.size_bytes, f"pulling {source.url}")
    # Files of another artifact, from a pull before a newer one was published.
    for path in [path for path in staging.rglob("*") if path.is_symlink() or path.is_file()]:
        if path.relative_to(staging).as_posix().removesuffix(".part") not in manifest.files:
            path.unlink()
    with full_disk_errors(staging):
        for name, entry in manifest.files.items():

            def report(got: int, name: str = name, before: int = done) -> None:
                progress(f"downloading {name}", (before + got) / total)

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
        fetched_bytes = file.tell() - before
    size_bytes, sha256 = partial.stat().st_size, hash_file(partial)
    if (size_bytes, sha256) != (entry.size_bytes, entry.sha256):
        if size_bytes == entry.size_bytes:
            partial.unlink()
            raise ArtifactError(
                f"{source.url}/{name}: sha256 is {sha256}, but its manifest says {entry.sha256}; the download was deleted; its publisher "
                "can send that file again with optbench publish --repair"
            )
        raise PublishError(f"{source.url}/{name}: ended after {size_bytes} of {entry.size_bytes} bytes; run again to resume")
    partial.replace(target)
    return fetched_bytes


def _move_verified(staging: Path, folder: Path, where: str) -> None:
    """Verify the complete artifact and move it into place."""
    found = audit(staging)
    if found.problems:
        shutil.rmtree(staging)
        raise ArtifactError(f"{where}: {'; '.join(found.problems)}; do not use it")
    staging.rename(folder)
