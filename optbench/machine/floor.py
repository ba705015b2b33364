"""The floor: milliseconds that no program on this machine can go below, from what the machine reaches at best."""

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
from optbench.model.checkpoint import Body

__all__ = [
    "Floor",
    "Peaks",
    "ProbeResult",
    "WeightFormat",
    "body_macs",
    "floor_ms",
    "measure_peaks",
    "probe",
    "read_probe",
]

WeightFormat = Literal["fp32", "bf16", "int8", "int4"]
# Bits a weight, and the arithmetic of the products. Scales are left out: a floor may be too low, never too high.
FORMATS: MappingProxyType[WeightFormat, tuple[int, Arithmetic]] = MappingProxyType(
    {"fp32": (32, "fp32"), "bf16": (16, "bf16"), "int8": (8, "int8"), "int4": (4, "int8")}
)


class Floor(Frozen):
    """The larger of two times that overlap at best.

    Attributes:
        memory_ms: to read the weights once.
        compute_ms: to do the multiply-adds.
    """

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
    """What this machine is and what it reaches."""

    machine: Machine
    peaks: Peaks


def body_macs(body: Body, tokens: int, batch: int = 1) -> int:
    """Multiply-adds of a batch: each weight once a token, and two a head's element for each pair of tokens (scores and values)."""
    return batch * tokens * (body.weights + 2 * tokens * body.head_size * sum(body.heads_by_layer))


def floor_ms(body: Body, tokens: int, batch: int, peaks: Peaks, weights: WeightFormat) -> Floor:
    """The least time for one batch.

    Weights that fit in the last-level cache may still be there from the run before, so they are counted at its bandwidth.

    Args:
        body: the transformer.
        tokens: of each row, at least 1.
        batch: rows.
        peaks: of the machine.
        weights: how they are kept; int4 and int8 are multiplied in int8.

    Raises:
        MeasureError: the machine has no peak for the arithmetic that this format wants.

    Source: Williams et al. 2009, "Roofline", Communications of the ACM 52(4).
    """
    bits, arithmetic = FORMATS[weights]
    if arithmetic not in peaks.gemm_tops:
        raise MeasureError(f"{weights}: this machine has no {arithmetic} products; it has {', '.join(peaks.gemm_tops)}: name one of these")
    size_bytes = body.weights * bits / 8
    bandwidth = peaks.read_gb_per_s
    if peaks.cache_read_gb_per_s is not None and size_bytes <= peaks.cache_bytes:
        bandwidth = max(bandwidth, peaks.cache_read_gb_per_s)
    return Floor(
        memory_ms=size_bytes / (bandwidth * 1e9) * 1e3,
        compute_ms=2 * body_macs(body, tokens, batch) / (peaks.gemm_tops[arithmetic] * 1e12) * 1e3,
    )


def probe(threads: int | None = None, progress: Progress = silent) -> ProbeResult:
    """Look at this machine and measure its peaks; nothing is cached.

    Args:
        threads: what affinity and cgroup quota allow when left out.
        progress: called with a phrase and the share done.
    """
    return ProbeResult(machine=read_machine(), peaks=measure_peaks(threads, progress))


def read_probe(path: Path) -> ProbeResult:
    """What `optbench probe --json` printed, on this machine or another.

    Raises:
        MachineError: missing, not JSON, or of another command.
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
            f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; what optbench probe --json prints is wanted"
        ) from error
