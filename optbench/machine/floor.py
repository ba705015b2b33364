"""The latency floor: the least time for a batch that this machine's peak bandwidth and arithmetic allow."""

import json
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from pydantic import ValidationError

from optbench.errors import MachineError, MeasureError
from optbench.machine.cpu import Machine, read_machine
from optbench.machine.frozen import Frozen
from optbench.machine.peaks import Arithmetic, Peaks, measure_peaks
from optbench.machine.progress import Progress, silent

__all__ = [
    "Floor",
    "Peaks",
    "ProbeResult",
    "WeightFormat",
    "floor_ms",
    "measure_peaks",
    "probe",
    "read_probe",
]

WeightFormat = Literal["fp32", "bf16", "int8", "int4"]
# Bits per weight, and the arithmetic of the products. Scales are left out: a floor may be too low, never too high.
FORMATS: MappingProxyType[WeightFormat, tuple[int, Arithmetic]] = MappingProxyType(
    {"fp32": (32, "fp32"), "bf16": (16, "bf16"), "int8": (8, "int8"), "int4": (4, "int8")}
)


class Floor(Frozen):
    """The larger of two times, which overlap completely at best: to read the weights once, and to do the multiply-adds."""

    memory_ms: float
    compute_ms: float

    @property
    def ms(self) -> float:
        """The floor."""
        return max(self.memory_ms, self.compute_ms)

    @property
    def bound_by(self) -> Literal["memory", "compute"]:
        """Which of the two it is."""
        return "memory" if self.memory_ms >= self.compute_ms else "compute"


class ProbeResult(Frozen):
    """What a machine is, and its measured peaks."""

    machine: Machine
    peaks: Peaks


def floor_ms(multiply_adds: int, weights: int, weight_format: WeightFormat, peaks: Peaks) -> Floor:
    """The least time for one batch, from `Body.multiply_adds` and `Body.weights`; int4 and int8 are multiplied in int8.

    Weights that fit in the last-level cache may still be there from the previous run, so they are read at its bandwidth.

    Raises:
        MeasureError: the machine has no peak for the arithmetic of this format.

    Source: Williams et al. 2009, "Roofline", Communications of the ACM 52(4).
    """
    bits, arithmetic = FORMATS[weight_format]
    if arithmetic not in peaks.gemm_tops:
        raise MeasureError(f"{weight_format}: this machine has no {arithmetic} products; use {' or '.join(peaks.gemm_tops)}")
    size_bytes = weights * bits / 8
    bandwidth = peaks.read_gb_per_s
    if peaks.cache_read_gb_per_s is not None and size_bytes <= peaks.cache_bytes:
        bandwidth = max(bandwidth, peaks.cache_read_gb_per_s)
    return Floor(
        memory_ms=size_bytes / (bandwidth * 1e9) * 1e3,
        compute_ms=2 * multiply_adds / (peaks.gemm_tops[arithmetic] * 1e12) * 1e3,
    )


def probe(threads: int | None = None, progress: Progress = silent) -> ProbeResult:
    """Read what this machine is and measure its peaks; nothing is cached."""
    return ProbeResult(machine=read_machine(), peaks=measure_peaks(threads, progress))


def read_probe(path: Path) -> ProbeResult:
    """Read what `optbench probe --json` printed, on this machine or another.

    Raises:
        MachineError: missing, not JSON, or printed by another command.
    """
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise MachineError(f"{path}: cannot be read as JSON ({error}); run optbench probe --json > {path.name} on that machine") from error
    parts = {name: document[name] for name in ("machine", "peaks") if name in document} if isinstance(document, dict) else {}
    try:
        return ProbeResult.model_validate(parts)
    except ValidationError as error:
        first = error.errors()[0]
        raise MachineError(
            f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; expected the output of optbench probe --json"
        ) from error
