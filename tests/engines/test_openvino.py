"""The openvino engine: static lengths equal the dynamic graph, options are taken or refused, nothing is printed or sent."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from optbench.artifact.folder import Artifact, copy_companions
from optbench.artifact.manifest import Kind
from optbench.engines import openvino as engine_module
from optbench.engines.onednn import MAX_ISA, vector_floats
from optbench.engines.openvino import STATIC_LENGTHS, OpenVino, _OpenVinoSession
from optbench.errors import EngineError
from optbench.machine.cpu import read_machine

LENGTHS = (4, 8, 16)


def open_engine(artifact: Artifact, **options: Any) -> _OpenVinoSession:
    session = OpenVino(**{"threads": 1, **options}).open(artifact)
    assert isinstance(session, _OpenVinoSession)
    return session


def ids_of(rows: int, length: int) -> tuple[Any, Any]:
    ids = np.random.default_rng(length).integers(4, 21, (rows, length))
    return ids, np.ones_like(ids)


def with_rt_info(artifact: Artifact, folder: Path, value: str, *path: str) -> Artifact:
    """A copy of an IR with one more entry in its rt_info."""
    import openvino

    model = openvino.Core().read_model(artifact.main_file)
    model.set_rt_info(value, list(path))
    (folder / "openvino").mkdir()
    copy_companions(artifact.path, folder)
    openvino.save_model(model, folder / Kind.OPENVINO.main_file, compress_to_fp16=False)
    return Artifact(Kind.OPENVINO, folder, "unsealed")


@pytest.mark.parametrize(("architecture", "pooling"), [("BertModel", "mean"), ("XLMRobertaModel", "cls")])
def test_static_lengths_equal_the_dynamic_graph(make_artifact: Callable[..., Artifact], architecture: str, pooling: str) -> None:
    artifact = make_artifact(Kind.OPENVINO, architecture, pooling)
    dynamic, static = open_engine(artifact), open_engine(artifact, static_lengths=LENGTHS)
    # Long before short, so that a bucket's earlier tokens would show.
    for rows, length in [(1, 16), (1, 9), (1, 8), (1, 3), (1, 1), (1, 17), (2, 8), (1, 2)]:
        inputs = ids_of(rows, length)
        # The same fp32 products padded to another shape: the sums may run in another order, 1e-7 each; unit vectors.
        np.testing.assert_allclose(static.embed(*inputs), dynamic.embed(*inputs), atol=3e-6)


def test_padding_that_came_with_the_input_stays_padding_in_a_static_length(make_artifact: Callable[..., Artifact]) -> None:
    static = open_engine(make_artifact(Kind.OPENVINO), static_lengths=LENGTHS)
    ids, mask = ids_of(1, 3)
    padded, padded_mask = np.pad(ids, ((0, 0), (0, 4))), np.pad(mask, ((0, 0), (0, 4)))
    np.testing.assert_allclose(static.embed(padded, padded_mask), static.embed(ids, mask), atol=3e-6)


@pytest.mark.parametrize(("rows", "length", "shape"), [(1, 1, 4), (1, 4, 4), (1, 5, 8), (1, 16, 16), (1, 17, None), (2, 4, None)], ids=str)
def test_one_text_runs_in_the_next_static_length_and_the_rest_in_the_dynamic_graph(
    make_artifact: Callable[..., Artifact], rows: int, length: int, shape: int | None
) -> None:
    session = open_engine(make_artifact(Kind.OPENVINO), static_lengths=LENGTHS, compile_on_first_use=True)
    assert session._requests == {}
    session.embed(*ids_of(rows, length))
    assert list(session._requests) == [shape]


@pytest.mark.parametrize(("padding", "length", "shape"), [(8, 9, None), (8, 24, 32), (8, 23, None), (0, 32, 32), (0, 31, None)], ids=str)
def test_text_that_would_need_too_much_padding_runs_in_the_dynamic_graph(
    make_artifact: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch, padding: int, length: int, shape: int | None
) -> None:
    monkeypatch.setattr(engine_module, "vector_floats", lambda: 16)
    session = open_engine(make_artifact(Kind.OPENVINO), static_lengths=(8, 32), static_padding_max=padding, compile_on_first_use=True)
    session.embed(*ids_of(1, length))
    assert list(session._requests) == [shape]


@pytest.mark.parametrize(("floats", "length", "shape"), [(8, 15, 16), (8, 31, None), (8, 32, 32), (16, 31, 32), (16, 63, None)], ids=str)
def test_text_is_padded_only_where_that_changes_no_sum_of_the_softmax(
    make_artifact: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch, floats: int, length: int, shape: int | None
) -> None:
    monkeypatch.setattr(engine_module, "vector_floats", lambda: floats)
    session = open_engine(make_artifact(Kind.OPENVINO), static_lengths=(8, 16, 32, 64), compile_on_first_use=True)
    session.embed(*ids_of(1, length))
    assert list(session._requests) == [shape]


def test_padding_changes_no_bit_of_a_softmax_of_two_vectors() -> None:
    import openvino.opset13 as operators

    scores = operators.parameter([1, -1], np.float32, name="scores")
    softmax = open_softmax(operators.softmax(scores, 1), scores)
    row = np.random.default_rng(3).standard_normal((1, 2 * vector_floats())).astype(np.float32)
    for length in range(1, row.shape[1] + 1):
        padded = np.full_like(row, np.finfo(np.float32).min)
        padded[:, :length] = row[:, :length]
        np.testing.assert_array_equal(softmax([padded])[0][:, :length], softmax([row[:, :length]])[0])


def open_softmax(output: Any, parameter: Any) -> Any:
    import openvino

    model = openvino.Model([output], [parameter], "softmax")
    return openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def test_reference_engine_has_no_static_lengths(make_artifact: Callable[..., Artifact], tmp_path: Path) -> None:
    plain, named = make_artifact(Kind.OPENVINO), with_rt_info(make_artifact(Kind.OPENVINO), tmp_path, "8 16", *STATIC_LENGTHS)
    assert OpenVino(static_lengths=LENGTHS, threads=1).reference(plain) == OpenVino(static_lengths=(), threads=1)
    assert OpenVino().reference(named) == OpenVino(static_lengths=())
    for engine in (OpenVino(), OpenVino(static_lengths=())):
        assert engine.reference(plain) is engine


def test_every_shape_is_compiled_on_opening(make_artifact: Callable[..., Artifact]) -> None:
    session = open_engine(make_artifact(Kind.OPENVINO), static_lengths=LENGTHS)
    assert list(session._requests) == [*LENGTHS, None]


def test_static_lengths_travel_in_the_ir_and_options_go_before_them(make_artifact: Callable[..., Artifact], tmp_path: Path) -> None:
    artifact = with_rt_info(make_artifact(Kind.OPENVINO), tmp_path, "8 16 32", *STATIC_LENGTHS)
    assert list(open_engine(artifact)._requests) == [8, 16, 32, None]
    assert list(open_engine(artifact, static_lengths=(4,))._requests) == [4, None]
    assert list(open_engine(artifact, static_lengths=())._requests) == [None]


@pytest.mark.parametrize("text", ["8 eight", "16 8", "0 4", " ".join(map(str, range(1, 60)))])
def test_broken_static_lengths_in_an_ir_are_shown(make_artifact: Callable[..., Artifact], tmp_path: Path, text: str) -> None:
    artifact = with_rt_info(make_artifact(Kind.OPENVINO), tmp_path, text, *STATIC_LENGTHS)
    with pytest.raises(EngineError, match=f"rt_info optbench/static_lengths is '{text[:20]}"):
        open_engine(artifact)


@pytest.mark.parametrize("lengths", [(16, 8), (8, 8), (0, 8)])
def test_static_lengths_must_ascend(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="ascending token lengths"):
        OpenVino(static_lengths=lengths)


def test_static_length_beyond_the_positions_is_refused(make_artifact: Callable[..., Artifact]) -> None:
    with pytest.raises(EngineError, match="static length 65, but the model's positions end at 64"):
        open_engine(make_artifact(Kind.OPENVINO, "XLMRobertaModel", "cls"), static_lengths=(8, 65))


def compiled_properties(artifact: Artifact, *names: str, **options: Any) -> list[Any]:
    import openvino

    model = openvino.Core().read_model(artifact.main_file)
    compiled = OpenVino(**options).compile(model, "test")
    return [compiled.get_property(name) for name in names]


def test_options_reach_openvino(make_artifact: Callable[..., Artifact]) -> None:
    import openvino

    names = ["INFERENCE_NUM_THREADS", "NUM_STREAMS", "PERFORMANCE_HINT", "INFERENCE_PRECISION_HINT", "DYNAMIC_QUANTIZATION_GROUP_SIZE"]
    names += ["ENABLE_CPU_PINNING", "SCHEDULING_CORE_TYPE"]
    options = {"threads": 1, "dynamic_quantization_group": 128, "enable_cpu_pinning": False, "scheduling_core_type": "PCORE_ONLY"}
    found = compiled_properties(make_artifact(Kind.OPENVINO), *names, **options)
    core_type = openvino.properties.hint.SchedulingCoreType.PCORE_ONLY
    assert found == [1, 1, "LATENCY", openvino.Type.f32, 128, False, core_type]


def test_quantization_group_comes_from_the_ir_unless_an_option_says_otherwise(
    make_artifact: Callable[..., Artifact], tmp_path: Path
) -> None:
    name = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
    artifact = with_rt_info(make_artifact(Kind.OPENVINO), tmp_path, "64", "runtime_options", name)
    assert compiled_properties(artifact, name) == [64]
    assert compiled_properties(artifact, name, dynamic_quantization_group=0) == [0]


def test_reading_keeps_the_quantization_group_of_the_ir(make_artifact: Callable[..., Artifact], tmp_path: Path) -> None:
    artifact = with_rt_info(make_artifact(Kind.OPENVINO), tmp_path, "64", "runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE")
    model = engine_module._read(artifact)
    assert OpenVino().compile(model, "test").get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 64
    fixed = model.clone()
    fixed.reshape({"input_ids": [1, 8], "attention_mask": [1, 8]})
    assert OpenVino().compile(fixed, "test").get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 64


def test_a_quota_limits_the_threads(make_artifact: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(engine_module, "usable_threads", lambda: 1)
    assert compiled_properties(make_artifact(Kind.OPENVINO), "INFERENCE_NUM_THREADS") == [1]


@pytest.mark.parametrize(("integer", "held", "refused"), [(True, True, True), (True, False, False), (False, True, False)])
def test_int8_on_amx_is_refused_where_it_came_too_late(monkeypatch: pytest.MonkeyPatch, integer: bool, held: bool, refused: bool) -> None:
    import openvino
    from openvino import opset13

    class OnAmx:
        def get_property(self, name: str) -> Any:
            isa = "meta=1.0;isa=Intel AVX-512 with float16, Intel DL Boost and bfloat16 support and Intel AMX with 8-bit integer support"
            return {"RUNTIME_REQUIREMENTS": isa, "INFERENCE_PRECISION_HINT": openvino.Type.f32, "INFERENCE_NUM_THREADS": 1}[name]

    class CpuWithAmx:
        def compile_model(self, *_: object) -> OnAmx:
            return OnAmx()

    parameter = opset13.parameter([-1], np.float32)
    rounded = opset13.fake_quantize(parameter, np.float32(0), np.float32(1), np.float32(0), np.float32(1), 256)
    model = openvino.Model([rounded if integer else opset13.relu(parameter)], [parameter])
    monkeypatch.setattr(openvino, "Core", CpuWithAmx)
    monkeypatch.setattr(engine_module, "stay_off_amx", lambda: held)
    with pytest.raises(EngineError, match="set ONEDNN_MAX_CPU_ISA=AVX512_CORE_FP16 before") if refused else nullcontext():
        OpenVino().compile(model, "test")


@pytest.mark.parametrize(("held", "cure"), [(None, False), ("AVX512_CORE_AMX", False), ("SSE41", True)])
def test_kernel_that_a_smaller_instruction_set_lacks_is_shown_with_the_cure(
    make_artifact: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch, held: str | None, cure: bool
) -> None:
    def lacks_it(*_: object) -> None:
        raise RuntimeError("[CPU] MVN node with name 'MVN_25' bad combination")

    session = open_engine(make_artifact(Kind.OPENVINO))
    monkeypatch.setattr(session, "_request", lambda _: lacks_it)
    monkeypatch.delenv(MAX_ISA, raising=False)
    if held is not None:
        monkeypatch.setenv(MAX_ISA, held)
    with pytest.raises(EngineError, match=r"failed on \(1, 8\) tokens.*bad combination") as caught:
        session.embed(*ids_of(1, 8))
    assert ("choose a larger instruction set" in str(caught.value)) == cure


def test_more_threads_than_openvino_runs_is_an_error(make_artifact: Callable[..., Artifact]) -> None:
    with pytest.raises(EngineError, match=r"OpenVINO runs \d+ threads here, not 1000; lower threads"):
        open_engine(make_artifact(Kind.OPENVINO), threads=1000)


def test_precision_that_openvino_would_swap_for_another_is_an_error(make_artifact: Callable[..., Artifact]) -> None:
    artifact = make_artifact(Kind.OPENVINO)
    if "avx512_fp16" in read_machine().flags:
        open_engine(artifact, inference_precision="f16").close()
        return
    with pytest.raises(EngineError, match=r"OpenVINO runs (bf16|f32) on this CPU, not f16; set inference_precision to f32"):
        open_engine(artifact, inference_precision="f16")


@pytest.mark.parametrize("content", [b"<net", b"no graph at all", b""])
@pytest.mark.parametrize("kind", [Kind.OPENVINO, Kind.ONNX])
def test_broken_graph_is_an_error_and_leaves_stderr_alone(
    make_artifact: Callable[..., Artifact], tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: Kind, content: bytes
) -> None:
    copy_companions(make_artifact(kind).path, tmp_path)
    artifact = Artifact(kind, tmp_path, "unsealed")
    artifact.main_file.parent.mkdir()
    artifact.main_file.write_bytes(content)
    artifact.main_file.with_suffix(".bin").write_bytes(b"")
    capfd.readouterr()
    with pytest.raises(EngineError, match=f"{artifact.main_file.name}: "):
        open_engine(artifact)
    assert capfd.readouterr() == ("", "")


def without_graph(source: Artifact, folder: Path) -> Artifact:
    """A copy of an artifact, the place of its graph empty: for a broken one."""
    copy_companions(source.path, folder)
    artifact = Artifact(source.kind, folder, "unsealed")
    artifact.main_file.parent.mkdir()
    return artifact


def test_truncated_weights_are_an_error(make_artifact: Callable[..., Artifact], tmp_path: Path) -> None:
    source = make_artifact(Kind.OPENVINO)
    artifact = without_graph(source, tmp_path)
    artifact.main_file.write_bytes(source.main_file.read_bytes())
    artifact.main_file.with_suffix(".bin").write_bytes(source.main_file.with_suffix(".bin").read_bytes()[:1000])
    with pytest.raises(EngineError, match="OpenVINO cannot read it"):
        open_engine(artifact)


def test_onnx_weights_outside_the_folder_are_refused(make_artifact: Callable[..., Artifact], tmp_path: Path) -> None:
    import onnx

    source = make_artifact(Kind.ONNX)
    artifact = without_graph(source, tmp_path)
    model = onnx.load(source.main_file)
    onnx.save(model, artifact.main_file, save_as_external_data=True, location="weights", size_threshold=0)
    outside = tmp_path / "weights"
    (artifact.main_file.parent / "weights").rename(outside)
    model = onnx.load(artifact.main_file, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../weights"
    artifact.main_file.write_bytes(model.SerializeToString())
    with pytest.raises(EngineError, match="outside the base directory"):
        open_engine(artifact)


def test_operator_without_a_rule_is_refused_with_the_way_on(make_artifact: Callable[..., Artifact], tmp_path: Path) -> None:
    import onnx

    source = make_artifact(Kind.ONNX)
    artifact = without_graph(source, tmp_path)
    model = onnx.load(source.main_file)
    next(node for node in model.graph.node if node.op_type == "Softmax").domain = "com.microsoft"
    model.graph.node[0].op_type, model.graph.node[0].domain = "QAttention", "com.microsoft"
    model.opset_import.add(domain="com.microsoft", version=1)
    artifact.main_file.write_bytes(model.SerializeToString())
    with pytest.raises(EngineError, match=r"(?s)com\.microsoft\.QAttention.*open it with onnxruntime"):
        open_engine(artifact)


def test_importing_openvino_writes_and_sends_nothing(tmp_path: Path) -> None:
    program = (
        "import sys, socket\n"
        "def refuse(*a): raise SystemExit('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "import optbench\n"
        "import openvino\n"
        "print(sys.modules['openvino_telemetry'], 'torch' in sys.modules)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert printed.stdout == "None False\n"
    assert list(tmp_path.iterdir()) == []
