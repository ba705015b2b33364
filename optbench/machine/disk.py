"""Disk space: checked before work begins, and a clear error when it runs out."""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from optbench.errors import MachineError, OptbenchError

__all__ = ["free_disk", "full_disk_errors"]

# With less than this left after a failure, the disk was full, whatever the library's error says.
FULL_DISK_BYTES = 32 * 1024 * 1024


def free_disk(folder: Path, needed_bytes: int, purpose: str) -> None:
    """Check that there is enough disk space for `folder`, which need not exist yet; the message says what needs it.

    Raises:
        MachineError: says how much is free and how much is needed.
    """
    existing = next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise MachineError(
            f"{folder}: {purpose} needs {needed_bytes / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; "
            "free some space, or name another folder with --cache or --output"
        )


@contextlib.contextmanager
def full_disk_errors(folder: Path) -> Iterator[None]:
    """Turn what libraries raise when the disk of `folder` is full into one clear error; anything else passes through.

    Raises:
        MachineError: the disk is full, or a file has reached this process's size limit.
    """
    try:
        yield
    except OptbenchError:
        raise
    except Exception as error:
        said = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        # numpy's error only says how much it wrote; OpenVINO's and protobuf's say nothing.
        short = isinstance(error, OSError) and error.errno is None
        if said or short or shutil.disk_usage(folder).free < FULL_DISK_BYTES:
            raise MachineError(
                f"{folder}: cannot be written, the disk is full: {error}; free some space or name another folder with --cache "
                "or --output, then run again"
            ) from error
        raise
