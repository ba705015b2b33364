"""Folders that are filled before they are moved into place, and removed even if the process that filled them was killed."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["STAGING", "staging_folder", "sweep_staging"]

STAGING = "staging-"
"""How the names of these folders begin where other folders are beside them."""
LOCK = ".lock"


@contextmanager
def staging_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """An empty folder `parent/prefix...`, removed at the end.

    A lock beside it is held as long: the kernel frees it however the process ends, also in another container, so `sweep_staging` removes
    what killed processes left and nothing that is in use.
    """
    from filelock import FileLock

    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / f"{prefix}{secrets.token_hex(4)}"
    # Taken before the folder exists: whoever sees the folder without a locked lock sees one that was left behind.
    with FileLock(f"{folder}{LOCK}", timeout=0):
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            Path(f"{folder}{LOCK}").unlink(missing_ok=True)


def sweep_staging(parent: Path, prefix: str) -> None:
    """Remove the staging folders of this prefix whose process has ended."""
    from filelock import FileLock, Timeout

    for folder in parent.glob(f"{prefix}*"):
        if folder.is_dir():
            lock = Path(f"{folder}{LOCK}")
            with suppress(OSError, Timeout), FileLock(lock, timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
                lock.unlink(missing_ok=True)
