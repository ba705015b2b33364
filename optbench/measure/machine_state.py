"""What around a measurement makes it noisy: each finding is a sentence for the record.

Everything is read from /proc and /sys. What a machine does not show (a virtual machine has no governor) is passed over.
"""

import time
from collections.abc import Callable
from pathlib import Path

from optbench.machine.cpu import cpu_quota

__all__ = ["check_environment", "read_governors", "read_turbo"]

# How long the machine is watched for other programs: 25 ticks of the kernel's clock a CPU.
WATCH_SECONDS = 0.25
# Of the whole machine's time in that watch; the kernel's own work and this process's waking up stay below.
OTHER_LOAD_MAX = 0.05
STOLEN_MAX = 0.01
# A few pages lie in swap on any machine that has been up for a while.
SWAP_BYTES_MAX = 64 * 2**20

CPUS = "sys/devices/system/cpu"
# Columns of /proc/stat, man 5 proc_stat; guest time is in user time already.
IDLE, IOWAIT, STEAL, COLUMNS = 3, 4, 7, 8


def check_environment(root: Path = Path("/"), pause: Callable[[float], None] = time.sleep) -> tuple[str, ...]:
    """Look for what disturbs timing. To be called while nothing of optbench's own runs: all work seen is other programs'.

    Args:
        root: where `proc` and `sys` lie.
        pause: waits for some seconds while the machine is watched.

    Returns:
        one sentence for each finding, with what to do about it.
    """
    checks = (_check_governor, _check_turbo, _check_throttling, _check_quota, _check_swap)
    found = [sentence for check in checks for sentence in check(root)]
    return (*found, *_check_load(root, pause))


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def read_governors(root: Path = Path("/")) -> frozenset[str]:
    """The cpufreq governors of all CPUs; empty where the machine shows none."""
    return frozenset(text for path in (root / CPUS).glob("cpu[0-9]*/cpufreq/scaling_governor") if (text := _read(path)))


def read_turbo(root: Path = Path("/")) -> bool | None:
    """Whether turbo is on; None where the machine does not show it."""
    # Intel's driver says whether turbo is off, the others whether it is on.
    shown = {"intel_pstate/no_turbo": "0", "cpufreq/boost": "1"}
    found = [text == on for name, on in shown.items() if (text := _read(root / CPUS / name)) is not None]
    return any(found) if found else None


def _check_governor(root: Path) -> list[str]:
    others = sorted(read_governors(root) - {"performance"})
    if not others:
        return []
    return [f"the CPU frequency follows the load (governor {', '.join(others)}); run: cpupower frequency-set -g performance"]


def _check_turbo(root: Path) -> list[str]:
    return ["turbo is on: the frequency falls as the CPU warms up, so compare figures of one run only"] if read_turbo(root) else []


def _check_throttling(root: Path) -> list[str]:
    counts = [_read(path) for path in (root / CPUS).glob("cpu[0-9]*/thermal_throttle/core_throttle_count")]
    most = max((int(count) for count in counts if count and count.isdecimal()), default=0)
    return [f"a core was slowed down {most} times since boot for being too hot; improve the cooling"] if most else []


def _check_quota(root: Path) -> list[str]:
    quota = cpu_quota(root / "sys/fs/cgroup", root / "proc/self/cgroup")
    if quota is None or quota == round(quota):
        return []
    return [f"the cgroup allows {quota:g} CPUs: the last thread is stopped for a part of each period; give whole CPUs"]


def _check_swap(root: Path) -> list[str]:
    fields = {}
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        key, _, value = line.partition(":")
        fields[key] = value.removesuffix("kB").strip()
    try:
        used = (int(fields["SwapTotal"]) - int(fields["SwapFree"])) * 1024
    except (KeyError, ValueError):
        return []
    return [f"{used / 1e6:.0f} MB of memory lie in swap; close programs until the models fit"] if used > SWAP_BYTES_MAX else []


def _check_load(root: Path, pause: Callable[[float], None]) -> list[str]:
    before = _read_times(root)
    if before is None:
        return []
    pause(WATCH_SECONDS)
    after = _read_times(root)
    found = []
    if after is not None and (total := sum(after) - sum(before)) > 0:
        idle = sum(after[column] - before[column] for column in (IDLE, IOWAIT, STEAL))
        busy = 1 - idle / total
        if busy > OTHER_LOAD_MAX:
            found.append(f"other programs kept the CPUs {100 * busy:.0f} % busy just before; stop them and measure again")
    if sum(before) and (stolen := before[STEAL] / sum(before)) > STOLEN_MAX:
        found.append(
            f"the hypervisor has taken {100 * stolen:.1f} % of the CPU time since boot: neighbors disturb; use a dedicated machine"
        )
    return found


def _read_times(root: Path) -> list[int] | None:
    """Ticks of all CPUs together since boot, by column."""
    line = (_read(root / "proc/stat") or "").partition("\n")[0].split()
    if line[:1] != ["cpu"] or len(line) <= COLUMNS or not all(part.isdecimal() for part in line[1:]):
        return None
    return [int(part) for part in line[1 : COLUMNS + 1]]
