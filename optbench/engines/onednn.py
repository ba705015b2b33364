"""oneDNN's switch that limits a process to a smaller instruction set. OpenVINO and torch both use oneDNN."""

import os

from optbench.errors import EngineError, MachineError
from optbench.machine.cpu import Isa, Machine, read_machine

__all__ = ["BELOW_AMX", "BF16_ISAS", "MAX_ISA", "is_off_amx", "max_isa_variables", "stay_off_amx", "vector_floats"]

MAX_ISA = "ONEDNN_MAX_CPU_ISA"
"""The environment variable; oneDNN reads it once, when a process first asks for a kernel."""
BELOW_AMX = "AVX512_CORE_FP16"
"""Everything that a CPU with AMX has, except AMX."""

BF16_ISAS: frozenset[Isa] = frozenset({"avx512_core_bf16", "avx512_core_amx"})
"""The instruction sets with bf16 products."""


def max_isa_variables(isa: Isa, machine: Machine | None = None) -> dict[str, str]:
    """The environment variables that limit oneDNN to `isa` in a new process; `machine` is this one by default.

    Raises:
        EngineError: this CPU lacks part of `isa`, so it cannot run as one that has it.
    """
    try:
        (machine or read_machine()).limited_to(isa)
    except MachineError as error:
        raise EngineError(str(error)) from error
    # oneDNN spells this one without an underscore, and ignores unknown names.
    return {MAX_ISA: "SSE41" if isa == "sse4_1" else isa.upper()}


def vector_floats(machine: Machine | None = None) -> int:
    """How many float32 a vector of oneDNN's kernels holds in this process: 16 with AVX-512, else 8."""
    limit = os.environ.get(MAX_ISA, "AVX512_CORE")
    wide = not (machine or read_machine()).lacks("avx512_core") and limit.startswith("AVX512")
    return 16 if wide else 8


def is_off_amx(machine: Machine | None = None) -> bool:
    """Whether int8 has to avoid AMX: the CPU has it, and the user has not set `ONEDNN_MAX_CPU_ISA`.

    OpenVINO's int8 products of dynamic shape crash on AMX in 2026.1 to 2026.3: its issue 37577, still open. fp32 does not use AMX.
    """
    return (machine or read_machine()).has_amx and os.environ.get(MAX_ISA, BELOW_AMX) == BELOW_AMX


def stay_off_amx(machine: Machine | None = None) -> bool:
    """Where `is_off_amx`, limit oneDNN in this process to the sets below AMX, and say so; works until oneDNN is first used."""
    if off := is_off_amx(machine):
        os.environ[MAX_ISA] = BELOW_AMX
    return off
