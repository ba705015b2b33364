"""oneDNN's switch that makes one CPU run as a smaller one would: what OpenVINO and torch share."""

import os
from types import MappingProxyType
from typing import get_args

from optbench.errors import EngineError
from optbench.machine.cpu import Isa, Machine, read_machine

__all__ = ["BELOW_AMX", "BF16_ISAS", "MAX_ISA", "is_off_amx", "max_isa_environment", "stay_off_amx"]

MAX_ISA = "ONEDNN_MAX_CPU_ISA"
"""The variable that oneDNN reads once, when a process first asks it for a kernel."""
BELOW_AMX = "AVX512_CORE_FP16"
"""All that a CPU with AMX has, but AMX."""

# Linux's flag that the set adds. oneDNN cuts the asked set with what the CPU has and says nothing: AVX2_VNNI on a Zen 4 or an
# Ice Lake, which have VNNI in its 512-bit form only, runs plain AVX2, on which int8 is slower than fp32.
_NEEDS = MappingProxyType(
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
BF16_ISAS: frozenset[Isa] = frozenset({"avx512_core_bf16", "avx512_core_amx"})
"""The sets with bfloat16 products."""


def max_isa_environment(isa: Isa, machine: Machine | None = None) -> dict[str, str]:
    """The variables under which oneDNN, in a fresh process, uses no more than `isa`.

    Args:
        isa: the set to be held to.
        machine: this machine, unless a test has another.

    Raises:
        EngineError: this CPU does not have the whole of `isa`, so it cannot stand in for one that has.
    """
    flags = (machine or read_machine()).flags
    if _NEEDS[isa] not in flags:
        able = ", ".join(name for name in get_args(Isa) if _NEEDS[name] in flags) or "none of them"
        raise EngineError(f"isa {isa}: this CPU lacks {_NEEDS[isa]}, so it cannot run as one that has it; it can run as {able}")
    # oneDNN spells this one without the underscore, and ignores what it does not know.
    return {MAX_ISA: "SSE41" if isa == "sse4_1" else isa.upper()}


def is_off_amx(machine: Machine | None = None) -> bool:
    """Whether int8 is kept off AMX: the CPU has it, and nobody else has set `ONEDNN_MAX_CPU_ISA`.

    OpenVINO's int8 products of dynamic shape are broken on AMX: its issue 37577, open, has crashes of 2026.1 to 2026.3. fp32 does not
    use AMX.

    Args:
        machine: this machine, unless a test has another.
    """
    return (machine or read_machine()).has_amx and os.environ.get(MAX_ISA, BELOW_AMX) == BELOW_AMX


def stay_off_amx(machine: Machine | None = None) -> bool:
    """Hold the oneDNN of this process, if it has not begun, to what a CPU has below AMX, where `is_off_amx` says so; what it says."""
    if off := is_off_amx(machine):
        os.environ[MAX_ISA] = BELOW_AMX
    return off
