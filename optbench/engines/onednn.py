"""oneDNN's switch that makes one CPU run as a smaller one would: what OpenVINO and torch share."""

from types import MappingProxyType
from typing import get_args

from optbench.errors import EngineError
from optbench.machine import Isa, Machine, read_machine

__all__ = ["BF16_ISAS", "max_isa_environment"]

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
    return {"ONEDNN_MAX_CPU_ISA": "SSE41" if isa == "sse4_1" else isa.upper()}
