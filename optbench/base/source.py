"""Where a base comes from, as one line of text: `hub:ORG/NAME`, `path:DIR`, `package:DISTRIBUTION` or `random`."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

__all__ = ["HubSource", "PackageSource", "PathSource", "RandomSource", "Source", "check_revision", "parse_source"]

# The hub's own rule: letters, digits, "-", "_", "."; no "--" or ".."; at most 96 characters (huggingface_hub validate_repo_id).
REPOSITORY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*/[A-Za-z0-9_][A-Za-z0-9._-]*")
REPOSITORY_LENGTH_MAX = 96
REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
DISTRIBUTION = re.compile(r"[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9._-]*[A-Za-z0-9]")  # PEP 508
COMMIT = re.compile(r"[0-9a-f]{40}")
FORMS = "hub:ORG/NAME, hub:ORG/NAME@REVISION, path:DIR, package:DISTRIBUTION, package:DISTRIBUTION/SUBDIR or random"


@dataclass(frozen=True)
class HubSource:
    """A model on a Hugging Face hub; `revision` None is the default branch."""

    repository: str
    revision: str | None = None

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a full commit hash, and so always gives the same bytes."""
        return self.revision is not None and COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        return f"hub:{self.repository}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class PathSource:
    """A checkpoint folder."""

    folder: Path

    def __str__(self) -> str:
        return f"path:{self.folder}"


@dataclass(frozen=True)
class PackageSource:
    """A checkpoint folder inside an installed Python distribution; its only one where `folder` is empty."""

    distribution: str
    folder: str = ""

    def __str__(self) -> str:
        return f"package:{self.distribution}" + (f"/{self.folder}" if self.folder else "")


@dataclass(frozen=True)
class RandomSource:
    """Seeded random weights of the recipe's body."""

    def __str__(self) -> str:
        return "random"


Source = HubSource | PathSource | PackageSource | RandomSource


def parse_source(text: str) -> Source:
    """Read a source.

    Raises:
        ValueError: none of the forms, or an invalid name; says what is expected.
    """
    if text == "random":
        return RandomSource()
    scheme, separator, rest = text.partition(":")
    if not separator or scheme not in ("hub", "path", "package"):
        raise ValueError(f"{text!r} is not a source; write {FORMS}")
    if any(not character.isprintable() for character in rest):
        raise ValueError(f"{text!r} holds a control character; write {FORMS}")
    if scheme == "hub":
        return _parse_hub(text, rest)
    if scheme == "package":
        return _parse_package(text, rest)
    if not rest.strip():
        raise ValueError(f"{text!r} names no folder; write path:DIR")
    return PathSource(Path(rest))


def _parse_hub(text: str, rest: str) -> HubSource:
    repository, at, revision = rest.partition("@")
    plain = REPOSITORY.fullmatch(repository) and not any(pair in repository for pair in ("--", ".."))
    if not plain or len(repository) > REPOSITORY_LENGTH_MAX or repository.endswith((".git", ".", "-")):
        raise ValueError(f"{text!r} names no model of a hub; write hub:ORG/NAME as on the model's page")
    if at:
        check_revision(revision)
    return HubSource(repository, revision if at else None)


def check_revision(revision: str) -> str:
    """Refuse what cannot be a branch, tag or commit.

    Raises:
        ValueError: says what is expected.
    """
    if not REVISION.fullmatch(revision) or ".." in revision or "//" in revision or revision.endswith(("/", ".")):
        raise ValueError(f"{revision!r} is not a revision; write the 40 digits of a commit, or a branch or tag")
    return revision


def _parse_package(text: str, rest: str) -> PackageSource:
    distribution, slash, folder = rest.partition("/")
    if not DISTRIBUTION.fullmatch(distribution):
        raise ValueError(f"{text!r} names no Python distribution; write package:NAME as pip installs it")
    parts = folder.split("/") if slash else []
    if any(part in ("", ".", "..") or "\\" in part for part in parts):
        raise ValueError(f"{text!r}: {folder!r} is not a folder inside the package; write package:DISTRIBUTION/SUBDIR")
    return PackageSource(distribution, str(PurePosixPath(*parts)) if parts else "")
