"""Tables of a probed machine and its latency floors."""

from optbench.machine.boxes import matching_box
from optbench.machine.floor import ProbeResult
from optbench.report.table import Table
from optbench.run.floors import RecipeFloor

__all__ = ["floor_table", "machine_table"]


def machine_table(result: ProbeResult) -> Table:
    """The machine's properties and peaks."""
    machine, peaks = result.machine, result.peaks
    box = matching_box(machine)
    rows = [
        ["CPU", f"{machine.cpu}, {machine.architecture}"],
        ["instruction set", machine.isa],
        ["VNNI / bf16 / AMX", " / ".join("yes" if has else "no" for has in (machine.has_vnni, machine.has_bf16, machine.has_amx))],
        ["physical cores", str(machine.cores)],
        ["usable threads", str(machine.usable_threads)],
        ["cgroup quota", "none" if machine.cpu_quota is None else f"{machine.cpu_quota:.2f} CPUs"],
        ["memory", f"{machine.memory_bytes / 2**30:.1f} GiB"],
        ["read bandwidth", f"{peaks.read_gb_per_s:.1f} GB/s"],
        *([f"GEMM peak {name}", f"{peak:.2f} TOP/s"] for name, peak in peaks.gemm_tops.items()),
        ["box", box.name if box else "none known: verdicts use ratios"],
    ]
    return Table("This machine", ["what", "value"], rows, f"TOP/s: 2 operations a multiply-add; {peaks.threads} threads.")


def floor_table(floor: RecipeFloor) -> Table:
    """One row per weight format, and the measured latency as multiples of the int8 floor."""
    lengths = list(next(iter(floor.floors_ms.values())))
    rows = [[f"floor {name}", *(f"{floors[length]:.2f}" for length in lengths)] for name, floors in floor.floors_ms.items()]
    note = "Floor: the larger of weight bytes / read bandwidth and multiply-adds / GEMM peak, in ms."
    if floor.measured_ms:
        rows.append([floor.measured, *(f"{floor.measured_ms[length]:.2f}" if length in floor.measured_ms else "" for length in lengths)])
        multiples = [
            f"{floor.measured_ms[length] / floor.floors_ms['int8'][length]:.2f}x" if length in floor.measured_ms else ""
            for length in lengths
        ]
        rows.append(["the same, over the int8 floor", *multiples])
    else:
        note += " Nothing measured on this machine yet: run optbench apply."
    return Table(f"Floor of {floor.recipe}, ms by tokens", ["", *map(str, lengths)], rows, note)
