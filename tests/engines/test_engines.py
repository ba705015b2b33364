"""What every engine owes: the same embeddings from the same model, one error type, memory given back."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import TypeAdapter

from optbench.artifact.folder import Artifact
from optbench.artifact.manifest import Kind
from optbench.engines import BaseEngine, Engine, Session, default_engine
from optbench.engines.onednn import MAX_ISA, max_isa_variables, stay_off_amx
from optbench.engines.onnxruntime import OnnxRuntime
from optbench.engines.openvino import OpenVino
from optbench.engines.torch import Torch
from optbench.errors import EngineError
from optbench.machine.cpu import Machine, read_machine

MODELS = [("BertModel", "mean"), ("XLMRobertaModel", "cls")]
ENGINES: list[tuple[BaseEngine, Kind]] = [
    (Torch(threads=1), Kind.CHECKPOINT),
    (OnnxRuntime(threads=1), Kind.ONNX),
    (OpenVino(threads=1), Kind.OPENVINO),
    (OpenVino(threads=1), Kind.ONNX),
]
IDS = [f"{type(engine).__name__}-{kind}" for engine, kind in ENGINES]
# float32 keeps 24 bits, so unit vectors agree to about 1e-7 a component; the kernels add the 32 to 64 terms of each of some twenty
# products in other orders, which costs a few bits more. A wrong mask or position moves the cosine by 1e-2 and more.
COSINE_DISTANCE = 1e-5


def tokens(rows: int, length: int, *, vocabulary: int = 21, seed: int = 3) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Random ids above the special ones, all attended to."""
    ids = np.random.default_rng(seed).integers(4, vocabulary, (rows, length))
    return ids, np.ones_like(ids)


def distance(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    """The largest cosine distance between rows."""
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float((1 - (left * right).sum(axis=1, dtype=np.float64) / norms).max())


@pytest.fixture(params=list(zip(ENGINES, IDS, strict=True)), ids=IDS)
def session(request: pytest.FixtureRequest, make_artifact: Callable[..., Artifact]) -> Iterator[Session]:
    (engine, kind), _ = request.param
    opened = engine.open(make_artifact(kind))
    yield opened
    opened.close()


@pytest.mark.parametrize(("architecture", "pooling"), MODELS)
@pytest.mark.parametrize(("engine", "kind"), ENGINES[1:], ids=IDS[1:])
def test_every_engine_agrees_with_torch_at_every_length_and_batch(
    make_artifact: Callable[..., Artifact], engine: BaseEngine, kind: Kind, architecture: str, pooling: str
) -> None:
    reference = Torch(threads=1).open(make_artifact(Kind.CHECKPOINT, architecture, pooling))
    opened = engine.open(make_artifact(kind, architecture, pooling))
    for rows, length in [(1, 1), (1, 7), (3, 16), (1, 64), (2, 33)]:
        ids, mask = tokens(rows, length)
        mask[0, (length + 1) // 2 :] = 0
        assert distance(opened.embed(ids, mask), reference.embed(ids, mask)) < COSINE_DISTANCE


def test_padding_moves_nothing(session: Session) -> None:
    ids, mask = tokens(1, 6)
    padded_ids, padded_mask = np.zeros((2, 20), np.int64), np.zeros((2, 20), np.int64)
    padded_ids[0, :6], padded_mask[0, :6] = ids, mask
    padded_ids[1], padded_mask[1] = tokens(1, 20)[0][0], 1
    assert distance(session.embed(padded_ids, padded_mask)[:1], session.embed(ids, mask)) < COSINE_DISTANCE


def test_embeddings_are_float32_and_stay_when_the_next_are_made(session: Session) -> None:
    first = session.embed(*tokens(1, 5))
    kept = first.copy()
    second = session.embed(*tokens(1, 5, seed=4))
    assert first.dtype == np.float32
    assert first.shape == (1, 32)
    assert distance(first, second) > 1e-3
    np.testing.assert_array_equal(first, kept)


def test_read_only_and_strided_inputs_are_as_good_as_any(session: Session) -> None:
    ids, mask = tokens(2, 6)
    expected = session.embed(ids, mask)
    wide_ids, wide_mask = np.repeat(ids, 2, axis=1), np.repeat(mask, 2, axis=1)
    ids.flags.writeable = mask.flags.writeable = False
    np.testing.assert_array_equal(session.embed(ids, mask), expected)
    np.testing.assert_array_equal(session.embed(wide_ids[:, ::2], wide_mask[:, ::2]), expected)


@pytest.mark.parametrize(("rows", "length", "top"), [(1, 80, 5), (2, 80, 5), (1, 3, 10**6)])
def test_input_beyond_the_model_is_an_error_and_not_the_result_before(session: Session, rows: int, length: int, top: int) -> None:
    session.embed(*tokens(rows, 4))
    ids, mask = tokens(rows, length)
    ids[0, -1] = top
    with pytest.raises(EngineError, match=rf"{length}"):
        session.embed(ids, mask)


def test_closed_session_says_so_and_closes_twice(session: Session) -> None:
    session.close()
    session.close()
    with pytest.raises(EngineError, match="the session is closed; open the artifact again"):
        session.embed(*tokens(1, 4))


@pytest.mark.parametrize("engine", [Torch(), OnnxRuntime(), OpenVino()])
def test_wrong_kind_is_refused_with_the_kinds_that_open(make_artifact: Callable[..., Artifact], engine: BaseEngine) -> None:
    kind = next(kind for kind in (Kind.CHECKPOINT, Kind.ONNX) if kind not in engine.opens)
    with pytest.raises(EngineError, match=f"is {kind}, but {type(engine).__name__} opens"):
        engine.open(make_artifact(kind))


@pytest.mark.parametrize("kind", list(Kind))
def test_default_engine_opens_its_kind(kind: Kind) -> None:
    assert kind in default_engine(kind).opens


@pytest.mark.parametrize("engine", [Torch(), OnnxRuntime(disabled_optimizers=("SkipLayerNormFusion",)), OpenVino(static_lengths=(8, 16))])
def test_engine_survives_json(engine: Engine) -> None:
    assert TypeAdapter[Engine](Engine).validate_json(engine.model_dump_json()) == engine


@pytest.mark.parametrize("engine", [Torch, OnnxRuntime, OpenVino])
def test_every_option_is_described(engine: type[BaseEngine]) -> None:
    assert [name for name, field in engine.model_fields.items() if name != "engine" and not field.description] == []


def test_importing_the_engines_loads_no_engine() -> None:
    program = "import sys, optbench.engines; print([n for n in ('torch', 'transformers', 'onnxruntime', 'openvino') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


def machine_with(*flags: str) -> Machine:
    return read_machine().model_copy(update={"flags": flags})


def test_isa_is_spelled_as_onednn_does() -> None:
    # oneDNN ignores a name it does not know: SSE4_1, with the underscore of its other names, is one.
    assert max_isa_variables("sse4_1", machine_with("sse4_1")) == {"ONEDNN_MAX_CPU_ISA": "SSE41"}
    assert max_isa_variables("avx2_vnni", machine_with("avx_vnni")) == {"ONEDNN_MAX_CPU_ISA": "AVX2_VNNI"}


def test_cpu_with_vnni_only_in_512_bits_cannot_stand_in_for_avx2_vnni() -> None:
    zen4 = machine_with("sse4_1", "avx2", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16")
    with pytest.raises(EngineError, match=r"lacks avx_vnni.*it can run as sse4_1, avx2, avx512_core, avx512_core_vnni, avx512_core_bf16"):
        max_isa_variables("avx2_vnni", zen4)


@pytest.mark.parametrize(
    ("flags", "before", "held", "after"),
    [
        (("avx512_vnni", "amx_int8"), None, True, "AVX512_CORE_FP16"),
        (("avx512_vnni", "amx_int8"), "AVX512_CORE_AMX", False, "AVX512_CORE_AMX"),
        (("avx512_vnni",), None, False, None),
    ],
    ids=["amx", "amx requested", "no amx"],
)
def test_process_stays_off_amx_unless_it_was_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], before: str | None, held: bool, after: str | None
) -> None:
    monkeypatch.setenv(MAX_ISA, "")  # so that it is as it was after the test
    monkeypatch.delenv(MAX_ISA)
    if before is not None:
        monkeypatch.setenv(MAX_ISA, before)
    assert stay_off_amx(machine_with(*flags)) is held
    assert stay_off_amx(machine_with(*flags)) is held
    assert os.environ.get(MAX_ISA) == after


def test_onnxruntime_says_that_it_cannot_be_held_to_an_isa() -> None:
    with pytest.raises(EngineError, match="isa avx2: onnxruntime selects its kernels by the CPU"):
        OnnxRuntime().isa_variables("avx2")


@pytest.mark.parametrize("engine", [Torch(inference_precision="bf16"), OpenVino(inference_precision="bf16")])
def test_bf16_is_refused_on_an_isa_without_it(engine: Torch | OpenVino) -> None:
    with pytest.raises(EngineError, match=r"isa avx2: has no bf16 products; set the (torch|openvino) engine's inference_precision to f32"):
        engine.isa_variables("avx2")


@pytest.mark.skipif("avx2" not in read_machine().flags, reason="the CPU has no AVX2")
@pytest.mark.parametrize(
    ("engine", "program", "said"),
    [
        (Torch(), "import torch; print(torch.backends.cpu.get_cpu_capability())", "AVX2"),
        (
            OpenVino(),
            "import optbench\n"
            "import openvino as ov\n"
            "x = ov.opset13.parameter([1])\n"
            "model = ov.Model([ov.opset13.relu(x)], [x])\n"
            "print(ov.Core().compile_model(model, 'CPU').get_property('RUNTIME_REQUIREMENTS').split('isa=')[1])",
            "Intel AVX2",
        ),
    ],
    ids=["torch", "openvino"],
)
def test_isa_variables_limit_a_new_process(engine: Torch | OpenVino, program: str, said: str, tmp_path: Path) -> None:
    variables = {**os.environ, **engine.isa_variables("avx2")}
    printed = subprocess.run([sys.executable, "-c", program], env=variables, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == said
