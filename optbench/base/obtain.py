"""Obtain a base from a hub, a folder, an installed Python package or random weights, as a sealed checkpoint.

Whatever the source, the artifact holds `model.safetensors`, `config.json`, the tokenizer, the sentence-transformers layout files as the
recipe states them, and `base.json`, which says where they came from.
"""

import errno
import hashlib
import json
import logging
from contextlib import AbstractContextManager
from pathlib import Path

from optbench.artifact.folder import Artifact, hash_file, open_artifact, seal
from optbench.artifact.manifest import Kind, Weights
from optbench.base import random_tokenizer, random_weights
from optbench.base.entry import Base
from optbench.base.hub import fetch_from_hub, find_in_cache
from optbench.base.layout import WEIGHTS, assemble, check_layout, find_files
from optbench.base.origin import ORIGIN, Origin
from optbench.base.package import find_package
from optbench.base.source import HubSource, PackageSource, PathSource, RandomSource, Source, parse_source
from optbench.errors import ArtifactError, BaseModelError, MachineError
from optbench.machine.disk import free_disk
from optbench.machine.progress import Progress, silent
from optbench.machine.staging import STAGING, staging_folder, sweep_staging
from optbench.model.checkpoint import read_body, write_layout

__all__ = ["base_key", "check_source", "find_source", "obtain_base"]

logger = logging.getLogger(__name__)

FORMAT = 2
"""Incremented when the same source and recipe give another artifact; part of the cache key."""


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
    """The name of a base in the cache: equal keys mean equal artifacts. Asks no hub, but hashes the files of a folder.

    Raises:
        BaseModelError: the folder or package is missing.
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


def check_source(base: Base, weights: Weights = "real", override: str | None = None) -> None:
    """Compare a folder's or a package's small files with the recipe, before anything runs. Asks no hub.

    Raises:
        BaseModelError: the source is missing, asks for what optbench does not export, or contradicts the recipe.
    """
    source = _choose_source(base, weights, override)
    match source:
        case PathSource():
            folder = find_files(source.folder.expanduser())["config.json"].parent
        case PackageSource():
            folder = find_package(source).files["config.json"].parent
        case _:
            return
    check_layout(folder, base.description, str(source))


def find_source(base: Base, weights: Weights = "real", override: str | None = None) -> Path | None:
    """The folder that a base was made from; None for random weights, and where a hub's files have left its cache."""
    source = _choose_source(base, weights, override)
    match source:
        case PathSource():
            return source.folder.expanduser()
        case PackageSource():
            return find_package(source).files["config.json"].parent
        case HubSource():
            return find_in_cache(source.repository, source.revision)
    return None


def _show(source: Source) -> str:
    """The source without this machine's paths, for records that are published."""
    return f"path:{source.folder.expanduser().absolute().name}" if isinstance(source, PathSource) else str(source)


def obtain_base(
    base: Base,
    *,
    cache: Path,
    weights: Weights = "real",
    override: str | None = None,
    key: str | None = None,
    progress: Progress = silent,
) -> Artifact:
    """Obtain the base as a sealed checkpoint in `cache`; an existing one is verified and reused.

    `weights="random"` gives the recipe's body seeded random weights. `override` is another source of the same body (`--base`), such as a
    fine-tuned derivative; the recipe's license and prompts and every check against the recipe apply to it too. `key` is `base_key` of the
    same arguments, if known: it hashes every file of a folder.

    Raises:
        BaseModelError: the base cannot be obtained, is broken, or contradicts the recipe.
        MachineError: the disk is full.
    """
    source = _choose_source(base, weights, override)
    try:
        key = key or base_key(base, weights, override)
        folder = cache / "artifacts" / key
        with _lock(cache / "locks" / f"{key}.lock", progress):
            cached = _reuse(folder, progress)
            if cached is not None:
                return cached
            sweep_staging(cache, STAGING)
            with staging_folder(cache, STAGING) as scratch:
                staging = scratch / "base"
                staging.mkdir()
                origin = _fill(staging, source, base, progress)
                (staging / ORIGIN).write_text(origin.model_dump_json(indent=2) + "\n", encoding="utf-8")
                progress("sealing the base", None)
                return seal(staging, folder, Kind.CHECKPOINT, origin.weights, read_body(staging).layer_sizes)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cure = "free some space, or name another --cache" if full else "check its permissions, or name another --cache"
        raise MachineError(f"{error.filename or cache}: {error.strerror or error} while making {_show(source)}; {cure}") from error


def _lock(path: Path, progress: Progress) -> AbstractContextManager[object]:
    """Hold a lock, which the kernel frees when its process ends; wait while another run makes the same base."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        progress("waiting for another run that is making the same base", None)
        return lock.acquire()


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
                pin = f"{source}: {asked} is not pinned and may change; it is now {revision}: write `revision: {revision}` into the recipe"
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
    # Weights on the same file system are linked and take no space; joined shards do.
    elsewhere = WEIGHTS not in files or files[WEIGHTS].stat().st_dev != staging.stat().st_dev
    needed_bytes = sum(path.stat().st_size for name, path in files.items() if elsewhere or not name.endswith(".safetensors"))
    free_disk(staging.parent, needed_bytes, f"a copy of {where}")
    return assemble(files, staging, base.description, where, progress)


def _fill_random(staging: Path, base: Base, progress: Progress) -> list[str]:
    free_disk(staging.parent, random_weights.file_bytes(base.body), "a body of random weights")
    special_ids = random_tokenizer.write_tokenizer(base.body, base.max_tokens, staging)
    random_weights.write_config(base.body, special_ids, staging / "config.json")
    write_layout(staging, base.description)
    random_weights.write_weights(base.body, base.seed, staging / WEIGHTS, progress)
    return [f"random weights (seed {base.seed}) and a synthetic tokenizer: latency is true, accuracy is meaningless"]
