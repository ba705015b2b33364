"""The machine's state before a measurement: what makes timings noisy, a sentence per finding.

Everything is read from /proc and /sys. What a machine does not expose (a virtual machine has no governor) is skipped.
"""

import re
import time
from collections.abc import Callable
from pathlib import Path

from optbench.errors import MachineError
from optbench.machine.boxes import Box, box_name, matching_box
from optbench.machine.cpu import Machine, cpu_quota

__all__ = ["check_machine_state", "describe_box", "read_governors", "read_turbo"]

# How long the load of other programs is sampled: 25 ticks of the kernel's clock per CPU.
WATCH_SECONDS = 0.25
# Shares of the machine's CPU time. The kernel and this process stay below the first.
OTHER_LOAD_MAX = 0.05
STOLEN_MAX = 0.01
# Any machine that has been up for a while has a few pages in swap.
SWAP_BYTES_MAX = 64 * 2**20

CPUS = "sys/devices/system/cpu"
# Columns of /proc/stat, man 5 proc_stat; user time includes guest time.
IDLE, IOWAIT, STEAL, COLUMNS = 3, 4, 7, 8


def check_machine_state(root: Path = Path("/"), pause: Callable[[float], None] = time.sleep) -> tuple[str, ...]:
    """Look for what disturbs timing: one sentence per finding, with the cure.

    Call it while optbench runs nothing: all load counts as other programs'. `root` is the folder that contains `proc` and `sys`.
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
    """The cpufreq governors of all CPUs; empty if the machine exposes none."""
    return frozenset(text for path in (root / CPUS).glob("cpu[0-9]*/cpufreq/scaling_governor") if (text := _read(path)))


def read_turbo(root: Path = Path("/")) -> bool | None:
    """Whether turbo is on; None if the machine does not expose it."""
    # Intel's driver exposes whether turbo is off, the others whether it is on.
    shown = {"intel_pstate/no_turbo": "0", "cpufreq/boost": "1"}
    found = [text == on for name, on in shown.items() if (text := _read(root / CPUS / name)) is not None]
    return any(found) if found else None


def describe_box(name: str, machine: Machine, root: Path = Path("/")) -> Box:
    """Describe this machine as a reference box, without latency limits.

    Raises:
        MachineError: the name is not a safe file name, or this machine is already a known box.
    """
    checked, known = box_name(name), matching_box(machine)
    if known is not None:
        raise MachineError(f"box {name}: this machine is already box {known.name}; edit that box's file instead")
    governors = read_governors(root)
    return Box(
        name=checked,
        cpu=f"^{re.escape(machine.cpu)}$",
        cores=machine.cores,
        isa=machine.isa,
        governor=next(iter(governors)) if len(governors) == 1 else None,
        turbo=read_turbo(root),
        memory_gb=round(machine.memory_bytes / 2**30),
        system=machine.system,
    )


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
    return [f"a core was throttled {most} times since boot because of heat; improve the cooling"] if most else []


def _check_quota(root: Path) -> list[str]:
    quota = cpu_quota(root / "sys/fs/cgroup", root / "proc/self/cgroup")
    if quota is None or quota == round(quota):
        return []
    return [f"the cgroup quota is {quota:g} CPUs: threads are throttled for part of each period; set a whole number of CPUs"]


def _check_swap(root: Path) -> list[str]:
    fields = {}
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        key, _, value = line.partition(":")
        fields[key] = value.removesuffix("kB").strip()
    try:
        used = (int(fields["SwapTotal"]) - int(fields["SwapFree"])) * 1024
    except (KeyError, ValueError):
        return []
    return [f"{used / 1e6:.0f} MB are swapped out; close programs until the models fit in memory"] if used > SWAP_BYTES_MAX else []


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
            found.append(f"other programs kept the CPUs {100 * busy:.0f} % busy just before the measurement; stop them and measure again")
    if sum(before) and (stolen := before[STEAL] / sum(before)) > STOLEN_MAX:
        found.append(f"the hypervisor has stolen {100 * stolen:.1f} % of the CPU time since boot; use a dedicated machine")
    return found


def _read_times(root: Path) -> list[int] | None:
    """Ticks of all CPUs since boot, by column."""
    line = (_read(root / "proc/stat") or "").partition("\n")[0].split()
    if line[:1] != ["cpu"] or len(line) <= COLUMNS or not all(part.isdecimal() for part in line[1:]):
        return None
    return [int(part) for part in line[1 : COLUMNS + 1]]
