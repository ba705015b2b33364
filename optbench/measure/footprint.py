"""Memory of the current process, from /proc."""

from pathlib import Path

from pydantic import Field

from optbench.errors import MeasureError
from optbench.machine.frozen import Frozen

__all__ = ["MemorySample", "read_memory"]


class MemorySample(Frozen):
    """Memory of the sampled process, in bytes.

    Attributes:
        rss_bytes: resident memory: anonymous, file-backed and shared.
        anonymous_bytes: private memory, which the kernel cannot drop.
        file_bytes: pages of mapped files, such as weights; the kernel can drop and re-read them.
    """

    rss_bytes: int = Field(ge=0)
    anonymous_bytes: int = Field(ge=0)
    file_bytes: int = Field(ge=0)
    peak_rss_bytes: int = Field(ge=0)


FIELDS = {"rss_bytes": "VmRSS", "anonymous_bytes": "RssAnon", "file_bytes": "RssFile", "peak_rss_bytes": "VmHWM"}


def read_memory(status: Path = Path("/proc/self/status")) -> MemorySample:
    """Sample this process.

    Raises:
        MeasureError: the kernel does not report it (Linux before 4.5, or another system).
    """
    values = {}
    try:
        for line in status.read_text().splitlines():
            key, _, value = line.partition(":")
            if value.endswith("kB"):
                values[key] = int(value.split()[0]) * 1024
        sample = MemorySample(**{name: values[key] for name, key in FIELDS.items()})
    except (OSError, ValueError, KeyError) as error:
        raise MeasureError(f"{status}: lacks {', '.join(FIELDS.values())} ({error}); measure on Linux 4.5 or later") from error
    # The kernel updates the high-water mark lazily: it can be below the current RSS.
    return sample.model_copy(update={"peak_rss_bytes": max(sample.peak_rss_bytes, sample.rss_bytes)})
