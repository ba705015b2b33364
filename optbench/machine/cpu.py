"""What this machine is: instruction sets, the cores and memory this process may use, and a fingerprint of it all.

Nothing here is timed; `peaks` measures bandwidth and matrix products.
"""

import hashlib
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Self, get_args

from optbench.errors import MachineError
from optbench.machine.frozen import Frozen

__all__ = ["Isa", "Machine", "cpu_quota", "physical_cores", "read_machine", "usable_threads"]

Isa = Literal["sse4_1", "avx2", "avx2_vnni", "avx512_core", "avx512_core_vnni", "avx512_core_bf16", "avx512_core_amx"]
"""oneDNN's names (ONEDNN_MAX_CPU_ISA, lower case), smallest first."""


# The Linux CPU flag of each set. oneDNN silently reduces a set that the CPU lacks: AVX2_VNNI on Zen 4 or Ice Lake, which have VNNI in
# its 512-bit form only, runs plain AVX2, on which int8 is slower than fp32.
_NEEDS: Mapping[Isa, str] = MappingProxyType(
    {
        "sse4_1": "sse4_1",
        "avx2": "avx2",
        "avx2_vnni": "avx_vnni",
        "avx512_core": "avx512bw",
        "avx512_core_vnni": "avx512_vnni",
        "avx512_core_bf16": "avx512_bf16",
        "avx512_core_amx": "amx_int8",
    }
)
# How the flags begin that a CPU with nothing beyond a set has not; in oneDNN's order, avx512_core has no VNNI of either form.
_BEYOND: Mapping[Isa, tuple[str, ...]] = MappingProxyType(
    {
        "sse4_1": ("avx", "fma", "f16c", "amx"),
        "avx2": ("avx_", "avx512", "amx"),
        "avx2_vnni": ("avx512", "amx"),
        "avx512_core": ("avx_", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx"),
        "avx512_core_vnni": ("avx512_bf16", "avx512_fp16", "amx"),
        "avx512_core_bf16": ("avx512_fp16", "amx"),
        "avx512_core_amx": (),
    }
)


class Machine(Frozen):
    """A machine, as records store it."""

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
        """Whether int8 dot products accumulate in 32 bits; without it, U8S8 products saturate at 16 bits (reduce the range)."""
        return bool({"avx512_vnni", "avx_vnni", "amx_int8"} & set(self.flags))

    @property
    def has_bf16(self) -> bool:
        """Whether the CPU multiplies bfloat16 natively."""
        return bool({"avx512_bf16", "amx_bf16"} & set(self.flags))

    @property
    def has_amx(self) -> bool:
        """Whether the CPU has int8 matrix tiles."""
        return "amx_int8" in self.flags

    def lacks(self, isa: Isa) -> str:
        """The CPU flag that it lacks to run as a CPU with `isa`; empty if it has all."""
        return "" if _NEEDS[isa] in self.flags else _NEEDS[isa]

    @property
    def isas(self) -> tuple[Isa, ...]:
        """The instruction sets that it can run as."""
        return tuple(isa for isa in get_args(Isa) if not self.lacks(isa))

    def limited_to(self, isa: Isa) -> Self:
        """This machine as one whose CPU has `isa` and nothing beyond: its flags, and all that follows from them.

        Raises:
            MachineError: the CPU lacks part of `isa`.
        """
        if missing := self.lacks(isa):
            able = ", ".join(self.isas) or "none of them"
            raise MachineError(f"isa {isa}: this CPU lacks {missing}, so it cannot run as one that has it; it can run as {able}")
        return self.model_copy(update={"flags": tuple(flag for flag in self.flags if not flag.startswith(_BEYOND[isa]))})

    @property
    def fingerprint(self) -> str:
        """A short hash; records with different fingerprints are not compared in milliseconds.

        It leaves out what differs between boots and kernels of one machine: the kernel's release, flags beyond the instruction set, and
        fractions of a GiB of memory.
        """
        same = [
            self.cpu,
            self.architecture,
            self.isa,
            self.cores,
            self.usable_threads,
            self.cpu_quota,
            round(self.memory_bytes / 2**30),
            self.system.split(" ")[0],
        ]
        return hashlib.sha256(json.dumps(same).encode()).hexdigest()[:16]


def cpu_quota(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """CPUs that the cgroups (v2, v1 or both) allow: the smallest quota along the path; None where there is no limit."""
    try:
        lines = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        lines = []
    quotas: list[float] = []
    for mount, controller in ((root, ""), (root / "unified", ""), (root / "cpu", "cpu"), (root / "cpu,cpuacct", "cpu")):
        # A container may see its own group as the root, yet be told its path on the host: missing folders are skipped.
        paths = [line[2] for line in lines if len(line) == 3 and controller in line[1].split(",")]
        for path in paths or ["/"]:
            parts = [part for part in path.split("/") if part not in ("", "..")]
            folders = [mount.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]
            quotas += [quota for folder in folders if (quota := _read_quota(folder)) is not None]
    return min(quotas, default=None)


def _read_quota(folder: Path) -> float | None:
    """The quota of one cgroup, from the file of v2 or the two of v1."""
    try:
        names = ("cpu.max",) if (folder / "cpu.max").exists() else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        quota, period = map(int, " ".join((folder / name).read_text() for name in names).split())
        return quota / period if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # no such group, or no limit: "max"
        return None


def physical_cores(cpus: Iterable[int], root: Path = Path("/sys/devices/system/cpu")) -> int:
    """The number of cores behind a set of CPUs; hyper-threads of one core count once."""
    siblings = set()
    for cpu in cpus:
        try:
            siblings.add((root / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip())
        except OSError:
            siblings.add(str(cpu))  # the kernel does not say: each counts
    return len(siblings)


def usable_threads() -> int:
    """Threads that can multiply at once: the cores of the affinity mask, limited by the cgroup quota, at least 1.

    Hyper-threads share a core's arithmetic units, so a second thread on a core slows the first.
    """
    import psutil

    cores = physical_cores(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count(logical=False) or 1
    quota = cpu_quota()
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


@cache
def read_machine() -> Machine:
    """This machine, read once per process."""
    import psutil

    try:
        name, flags = parse_cpuinfo(Path("/proc/cpuinfo").read_text())
    except OSError:
        name, flags = parse_cpuinfo("")  # not Linux: without flags the smallest instruction set is assumed
    return Machine(
        cpu=name or platform.processor() or "unknown",
        architecture=platform.machine(),
        flags=flags,
        cores=psutil.cpu_count(logical=False) or psutil.cpu_count() or 1,
        usable_threads=usable_threads(),
        cpu_quota=cpu_quota(),
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()}",
    )


def parse_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """The model name and sorted flags of the first CPU in `/proc/cpuinfo`; empty where it does not say."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields.get("model name", ""), tuple(sorted(fields.get("flags", fields.get("Features", "")).split()))
