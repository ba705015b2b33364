"""Room on the disk: asked for before work begins, and a full one told in plain words."""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from optbench.errors import MachineError, OptbenchError

__all__ = ["free_disk", "full_disk_errors"]

# Less than this left after something failed means that it failed for want of disk, whatever its library called it.
FULL_DISK_BYTES = 32 * 1024 * 1024


def free_disk(folder: Path, wanted_bytes: int, purpose: str) -> None:
    """Make sure that there is room before anything is written.

    Args:
        folder: where it will be written; it need not exist yet.
        wanted_bytes: how much.
        purpose: what needs it, for the message.

    Raises:
        MachineError: says how much is free and how much is wanted.
    """
    existing = next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < wanted_bytes:
        raise MachineError(
            f"{folder}: {purpose} needs {wanted_bytes / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; "
            "free some space, or name another folder with --cache or --output"
        )


@contextlib.contextmanager
def full_disk_errors(folder: Path) -> Iterator[None]:
    """Turn what libraries raise when `folder` runs full into one clear error; anything else passes through.

    Raises:
        MachineError: the disk is full, or a file has reached the size that this process may write.
    """
    try:
        yield
    except OptbenchError:
        raise
    except Exception as error:
        said = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        # numpy says only how much it wrote, OpenVINO and protobuf nothing at all.
        short = isinstance(error, OSError) and error.errno is None
        if said or short or shutil.disk_usage(folder).free < FULL_DISK_BYTES:
            raise MachineError(
                f"{folder}: cannot be written, the disk is full: {error}; free some space or name another folder with --cache "
                "or --output, then run again"
            ) from error
        raise
