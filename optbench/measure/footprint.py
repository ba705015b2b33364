"""What a process holds in memory, read inside it once a model is open."""

from pathlib import Path

from pydantic import Field

from optbench.errors import MeasureError
from optbench.machine.frozen import Frozen

__all__ = ["MemorySample", "read_memory"]


class MemorySample(Frozen):
    """Memory of the process that takes the sample, in bytes.

    Attributes:
        rss_bytes: resident now: anonymous, file-backed and shared memory.
        anonymous_bytes: of it, what is the process's own and cannot be dropped.
        file_bytes: of it, pages of mapped files, weights among them: the kernel may drop and read them again.
        peak_rss_bytes: the most that was ever resident.
    """

    rss_bytes: int = Field(ge=0)
    anonymous_bytes: int = Field(ge=0)
    file_bytes: int = Field(ge=0)
    peak_rss_bytes: int = Field(ge=0)


FIELDS = {"rss_bytes": "VmRSS", "anonymous_bytes": "RssAnon", "file_bytes": "RssFile", "peak_rss_bytes": "VmHWM"}


def read_memory(status: Path = Path("/proc/self/status")) -> MemorySample:
    """Sample this process.

    Raises:
        MeasureError: the kernel does not say (Linux before 4.5, or no Linux).
    """
    values = {}
    try:
        for line in status.read_text().splitlines():
            key, _, value = line.partition(":")
            if value.endswith("kB"):
                values[key] = int(value.split()[0]) * 1024
        sample = MemorySample(**{name: values[key] for name, key in FIELDS.items()})
    except (OSError, ValueError, KeyError) as error:
        raise MeasureError(f"{status}: no {', '.join(FIELDS.values())} in it ({error}); measure on Linux 4.5 or later") from error
    # The kernel keeps its mark when memory is given back, so until then the mark may lie below what is resident now.
    return sample.model_copy(update={"peak_rss_bytes": max(sample.peak_rss_bytes, sample.rss_bytes)})
