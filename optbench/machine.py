"""What this machine is: instruction sets, the cores and memory this process may use, and a fingerprint of it all.

Nothing here is timed; measured bandwidth and GEMM peaks are in `tune/floor.py`.
"""

import hashlib
import math
import os
import platform
import shutil
from functools import cache
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel, ConfigDict

from optbench.errors import MachineError

__all__ = ["Isa", "Machine", "cpu_quota", "free_disk", "read_machine", "usable_threads"]

Isa = Literal["sse4_1", "avx2", "avx2_vnni", "avx512_core", "avx512_core_vnni", "avx512_core_bf16", "avx512_core_amx"]
"""oneDNN's names (ONEDNN_MAX_CPU_ISA, lower case), smallest first."""


class Machine(BaseModel):
    """A machine as a record keeps it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu: str
    architecture: str
    flags: tuple[str, ...]
    cores: int
    usable_threads: int
    cpu_quota: float | None
    memory_bytes: int
    system: str

    @property
    def isa(self) -> Isa:
        """The largest instruction set, in oneDNN's terms, that the CPU has."""
        has = set(self.flags).__contains__
        if has("amx_int8"):
            return "avx512_core_amx"
        if has("avx512_bf16"):
            return "avx512_core_bf16"
        if has("avx512_vnni"):
            return "avx512_core_vnni"
        if has("avx_vnni"):
            return "avx2_vnni"
        if has("avx512bw") and has("avx512vl"):
            return "avx512_core"
        return "avx2" if has("avx2") else "sse4_1"

    @property
    def has_vnni(self) -> bool:
        """Whether int8 dot products accumulate in 32 bits; without it U8S8 products saturate at 16 (reduce the range)."""
        return bool({"avx512_vnni", "avx_vnni", "amx_int8"} & set(self.flags))

    @property
    def has_bf16(self) -> bool:
        """Whether the CPU multiplies bfloat16 natively."""
        return bool({"avx512_bf16", "amx_bf16"} & set(self.flags))

    @property
    def fingerprint(self) -> str:
        """A short hash; records with different fingerprints are not compared in milliseconds."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


def cpu_quota(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """CPUs that the cgroup allows, cgroup v2 then v1, the smallest along the path; None where there is no limit."""
    quotas = []
    try:
        relative = next((line.split("::", 1)[1] for line in membership.read_text().splitlines() if line.startswith("0::")), "/")
    except OSError:
        relative = "/"
    folder = root / relative.strip("/")
    for candidate in [folder, *folder.parents]:
        if candidate.is_relative_to(root):
            quotas += _read_quota(candidate)
    v1 = root / "cpu"
    try:
        quota, period = (int((v1 / name).read_text()) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
        if quota > 0:
            quotas.append(quota / period)
    except (OSError, ValueError):
        pass
    return min(quotas, default=None)


def _read_quota(folder: Path) -> list[float]:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return [] if quota == "max" else [int(quota) / int(period)]
    except (OSError, ValueError):
        return []


def usable_threads() -> int:
    """Threads that can run at once: the affinity mask, cut to the cgroup quota, at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


@cache
def read_machine() -> Machine:
    """This machine, read once a process."""
    name = platform.processor() or "unknown"
    flags: tuple[str, ...] = ()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = (part.strip() for part in line.partition(":"))
            if key == "model name":
                name = value
            elif key in ("flags", "Features"):
                flags = tuple(sorted(value.split()))
                break
    except OSError:
        pass  # not Linux: no flags, so the smallest instruction set is assumed
    return Machine(
        cpu=name,
        architecture=platform.machine(),
        flags=flags,
        cores=psutil.cpu_count(logical=False) or 1,
        usable_threads=usable_threads(),
        cpu_quota=cpu_quota(),
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()}",
    )


def free_disk(folder: Path, wanted_bytes: int, purpose: str) -> None:
    """Make sure that there is room before anything is written.

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
