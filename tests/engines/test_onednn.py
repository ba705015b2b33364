"""oneDNN's switch, and AMX: what is decided from the CPU's flags and the environment, on whatever CPU the tests run."""

import os
from types import SimpleNamespace
from typing import Any, Literal, get_args

import pytest

from optbench.engines import openvino as engine_module
from optbench.engines.onednn import BELOW_AMX, BF16_ISAS, MAX_ISA, is_off_amx, max_isa_variables, stay_off_amx
from optbench.engines.openvino import OpenVino
from optbench.errors import EngineError
from optbench.machine.cpu import Isa, Machine, read_machine

AVX512 = ("sse4_1", "avx2", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16")
AMX = (*AVX512, "amx_tile", "amx_int8", "amx_bf16")


def machine_with(*flags: str) -> Machine:
    return read_machine().model_copy(update={"flags": flags})


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is not set, and is as it was after the test."""
    monkeypatch.setenv(MAX_ISA, "")
    monkeypatch.delenv(MAX_ISA)


@pytest.mark.parametrize(
    ("flags", "cap", "off"),
    [
        (AMX, None, True),
        (AMX, BELOW_AMX, True),  # set by this process, or by the one that started it
        (AMX, "AVX512_CORE_AMX", False),  # whoever set another cap has decided
        (AMX, "AVX2", False),
        (AVX512, None, False),
        (AVX512, BELOW_AMX, False),
        ((*AVX512, "amx_tile", "amx_bf16"), None, False),  # tiles without int8
        (("avx2", "avx_vnni"), None, False),
        ((), None, False),
    ],
)
def test_int8_avoids_amx_where_the_cpu_has_it_and_nobody_set_a_cap(
    flags: tuple[str, ...], cap: str | None, off: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cap is not None:
        monkeypatch.setenv(MAX_ISA, cap)
    assert is_off_amx(machine_with(*flags)) is off
    assert os.environ.get(MAX_ISA) == cap  # asking changes nothing
    assert stay_off_amx(machine_with(*flags)) is off
    assert os.environ.get(MAX_ISA) == (BELOW_AMX if off else cap)


def test_cap_below_amx_is_a_set_of_onednn_that_leaves_out_nothing_but_amx() -> None:
    # oneDNN ignores a name that it does not know, and would then use AMX. Source: its dev_guide_cpu_dispatcher_control, in order.
    order = ["SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI", "AVX512_CORE_BF16"]
    order += ["AVX10_1_512", "AVX512_CORE_FP16", "AVX10_1_512_AMX", "AVX512_CORE_AMX"]
    assert BELOW_AMX in order
    assert [name for name in order[order.index(BELOW_AMX) + 1 :] if "AMX" not in name] == []
    assert {next(iter(max_isa_variables(isa, machine_with(*AMX, "avx_vnni")).values())) for isa in get_args(Isa)} <= set(order)


@pytest.mark.parametrize("isa", get_args(Isa))
def test_every_instruction_set_needs_its_flag(isa: Isa) -> None:
    with pytest.raises(EngineError, match=f"isa {isa}: this CPU lacks .* it can run as none of them"):
        max_isa_variables(isa, machine_with())
    assert list(max_isa_variables(isa, machine_with(*AMX, "avx_vnni"))) == [MAX_ISA]


def test_amx_alone_does_not_lend_a_cpu_its_int8_tiles() -> None:
    with pytest.raises(EngineError, match="isa avx512_core_amx: this CPU lacks amx_int8"):
        max_isa_variables("avx512_core_amx", machine_with(*AVX512, "amx_tile", "amx_bf16"))
    assert set(BF16_ISAS) == {"avx512_core_bf16", "avx512_core_amx"}


@pytest.mark.parametrize(
    ("integer", "precision", "limited"), [(True, "f32", True), (True, "bf16", True), (False, "f32", True), (False, "bf16", False)]
)
def test_only_bf16_products_of_a_graph_without_int8_may_use_amx(
    integer: bool, precision: Literal["f32", "bf16"], limited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino

    asked: list[bool] = []
    monkeypatch.setattr(engine_module, "stay_off_amx", lambda: asked.append(True) or False)  # type: ignore[func-returns-value]
    applied: dict[str, Any] = {"INFERENCE_PRECISION_HINT": getattr(openvino.Type, precision), "INFERENCE_NUM_THREADS": 1}
    compiled = SimpleNamespace(get_property=applied.__getitem__)
    monkeypatch.setattr(openvino, "Core", lambda: SimpleNamespace(compile_model=lambda *_: compiled))
    operation = SimpleNamespace(get_type_name=lambda: "FakeQuantize" if integer else "MatMul")
    graph: Any = SimpleNamespace(get_ops=lambda: [operation])
    OpenVino(inference_precision=precision).compile(graph, "test")
    assert bool(asked) is limited
