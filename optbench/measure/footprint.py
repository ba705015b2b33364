"""What a process holds in memory."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from optbench.worker import peak_rss_bytes

__all__ = ["MemorySample", "read_memory"]


class MemorySample(BaseModel):
    """Memory of the process that takes the sample, in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rss_bytes: int
    anonymous_bytes: int
    file_bytes: int
    peak_rss_bytes: int


def read_memory() -> MemorySample:
    """Sample this process."""
    values = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if value.endswith("kB"):
            values[key] = int(value.split()[0]) * 1024
    return MemorySample(
        rss_bytes=values["VmRSS"], anonymous_bytes=values["RssAnon"], file_bytes=values["RssFile"], peak_rss_bytes=peak_rss_bytes()
    )
