"""convert_openvino: the same numbers under the same names, and one clear error for what OpenVINO cannot read."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from optbench.artifact.folder import Artifact, open_artifact, seal
from optbench.artifact.manifest import Kind
from optbench.errors import MachineError, StepError
from optbench.machine.cpu import read_machine
from optbench.steps.base import StepContext, StepReport
from optbench.steps.convert_openvino import ConvertOpenvino
from optbench.steps.export_onnx import ExportOnnx
from optbench.steps.onnx import file as onnx_file
from tests.conftest import MakeOnce, filled_by

# As in test_export_onnx: 64 terms a sum, 8 sums a path, 6e-8 a rounding of values of order 1.
TINY_ABSOLUTE = 3e-5


def run_step(source: Artifact, folder: Path, **options: Any) -> tuple[Path, StepReport]:
    out, scratch = folder / "out", folder / "scratch"
    out.mkdir(parents=True)
    scratch.mkdir()
    return out, ConvertOpenvino(**options).run(source, out, StepContext(scratch=scratch, machine=read_machine()))


@pytest.fixture(scope="module")
def exported(
    make_once: MakeOnce, make_checkpoint: Callable[..., Artifact], make_artifact: Callable[..., Artifact]
) -> Callable[..., Artifact]:
    """Sealed tiny ONNX artifacts; `external` puts the weights in a data file."""

    def make(architecture: str = "BertModel", pooling: str = "mean", *, external: bool = False) -> Artifact:
        if not external:
            return make_artifact(Kind.ONNX, architecture, pooling)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(onnx_file, "INLINE_BYTES_MAX", 1000)
            fill = filled_by(ExportOnnx(), make_checkpoint(architecture, pooling))
            return make_once(("external", architecture, pooling), Kind.ONNX, "random", fill)

    return make


def altered(source: Artifact, folder: Path, alter: Callable[[Path], None]) -> Artifact:
    """A copy of `source`, changed and sealed again."""
    shutil.copytree(source.path, folder / "staging")
    (folder / "staging/manifest.json").unlink()
    alter(folder / "staging/onnx")
    return seal(folder / "staging", folder / "sealed", Kind.ONNX, "random")


Feeds = dict[str, NDArray[np.int64]]


def make_feeds(batch: int, tokens: int) -> Feeds:
    rng = np.random.default_rng(tokens)
    mask = (np.arange(tokens) < rng.integers(1, tokens + 1, (batch, 1))).astype(np.int64)
    return {"input_ids": rng.integers(4, 20, (batch, tokens)), "attention_mask": mask}


def run_onnxruntime(artifact: Artifact, feeds: Feeds) -> list[NDArray[np.float32]]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    outputs: list[NDArray[np.float32]] = ort.InferenceSession(str(artifact.main_file), options).run(None, feeds)
    return outputs


def compile_f32(folder: Path) -> Callable[[Feeds], list[NDArray[np.float32]]]:
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1"}
    compiled = ov.Core().compile_model(folder / "openvino/openvino_model.xml", "CPU", options)
    return lambda feeds: [compiled(feeds)[index] for index in range(2)]


@pytest.mark.parametrize(("architecture", "pooling"), [("BertModel", "mean"), ("XLMRobertaModel", "cls")])
def test_numbers_are_those_of_the_onnx_graph(exported: Callable[..., Artifact], architecture: str, pooling: str, tmp_path: Path) -> None:
    source = exported(architecture, pooling)
    out, report = run_step(source, tmp_path)
    embed = compile_f32(out)
    for batch, tokens in [(1, 1), (1, 2), (2, 1), (3, 17), (1, 64), (4, 33)]:
        feeds = make_feeds(batch, tokens)
        for left, right in zip(embed(feeds), run_onnxruntime(source, feeds), strict=True):
            assert left.dtype == np.float32
            np.testing.assert_allclose(left, right, rtol=0, atol=TINY_ABSOLUTE, err_msg=f"{batch} x {tokens}")
    # Five layer norms are MVN with a multiplication and an addition in OpenVINO's opset.
    assert report.matched == {"MatMul": 16, "MVN": 5, "Gelu": 2, "Softmax": 2}
    assert report.facts["foreign_operators"] == {}
    assert open_artifact(source.path).sha256 == source.sha256


def test_names_order_and_dynamic_shapes_survive(exported: Callable[..., Artifact], tmp_path: Path) -> None:
    out, _ = run_step(exported(), tmp_path)
    model = ov.Core().read_model(out / "openvino/openvino_model.xml")
    assert [port.get_names() for port in model.inputs] == [{"input_ids"}, {"attention_mask"}]
    assert [port.get_names() for port in model.outputs] == [{"last_hidden_state"}, {"sentence_embedding"}]
    assert [str(port.get_element_type().to_string()) for port in model.inputs] == ["i64", "i64"]
    assert all(axis.is_dynamic for port in model.inputs for axis in port.partial_shape)
    assert (out / "tokenizer.json").is_file()
    assert not (out / "onnx").exists()


def test_node_names_say_the_module(exported: Callable[..., Artifact], tmp_path: Path) -> None:
    out, _ = run_step(exported(), tmp_path)
    model = ov.Core().read_model(out / "openvino/openvino_model.xml")
    names = {operator.get_friendly_name() for operator in model.get_ops() if operator.get_type_name() == "MatMul"}
    assert {"/encoder/layer.1/output/dense/MatMul", "/encoder/layer.0/attention/self/query/MatMul"} <= names


def test_static_lengths_travel_in_the_model(exported: Callable[..., Artifact], tmp_path: Path) -> None:
    out, _ = run_step(exported(), tmp_path / "with", static_lengths=(8, 16, 32))
    core = ov.Core()
    assert core.read_model(out / "openvino/openvino_model.xml").get_rt_info(["optbench", "static_lengths"]).astype(str) == "8 16 32"
    without, _ = run_step(exported(), tmp_path / "without")
    assert not core.read_model(without / "openvino/openvino_model.xml").has_rt_info(["optbench", "static_lengths"])


@pytest.mark.parametrize("lengths", [(16, 8), (8, 8), (0, 8)])
def test_lengths_out_of_order_are_refused(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="ascending order"):
        ConvertOpenvino(static_lengths=lengths)


def test_length_beyond_the_model_is_refused(exported: Callable[..., Artifact], tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"static_lengths goes up to 65 tokens, but .* takes at most 64: remove the longer ones"):
        run_step(exported(), tmp_path, static_lengths=(8, 65))


def test_fp16_weights_halve_the_file(exported: Callable[..., Artifact], tmp_path: Path) -> None:
    full, _ = run_step(exported(), tmp_path / "full")
    half, _ = run_step(exported(), tmp_path / "half", compress_to_fp16=True)
    name = "openvino/openvino_model.bin"
    # Shapes and position ids stay integers: 1 kB of 88.
    assert (half / name).stat().st_size == pytest.approx((full / name).stat().st_size / 2, rel=0.02)
    feeds = make_feeds(3, 17)
    left, right = compile_f32(half)(feeds)[1], compile_f32(full)(feeds)[1]
    # fp16 rounds each weight by up to 2^-11 of itself; independent roundings average out in a sum, so a unit vector moves by
    # about that much for each of the 12 products on its path.
    assert 0 < np.linalg.norm(left - right, axis=1).max() < 12 * 2**-11


def test_converting_twice_gives_the_same_bytes(exported: Callable[..., Artifact], tmp_path: Path) -> None:
    first, _ = run_step(exported(), tmp_path / "first", static_lengths=(8,))
    second, _ = run_step(exported(), tmp_path / "second", static_lengths=(8,))
    for name in ("openvino/openvino_model.xml", "openvino/openvino_model.bin"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def replace_operator(folder: Path, name: str, node: onnx.NodeProto, drop: str | None = None) -> None:
    model = onnx.load(folder / "model.onnx")
    nodes = [node if old.name == name else old for old in model.graph.node if old.name != drop]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, folder / "model.onnx")


def test_operator_without_a_rule_is_named(exported: Callable[..., Artifact], tmp_path: Path) -> None:
    """The near miss: a graph right in all but one operator."""
    name = "/encoder/layer.0/intermediate/intermediate_act_fn/Gelu"
    node = onnx.helper.make_node(
        "QAttention", ["/encoder/layer.0/intermediate/dense/Add_output_0"], [f"{name}_output_0"], name, domain="com.microsoft"
    )
    source = altered(exported(), tmp_path, lambda folder: replace_operator(folder, name, node))
    with pytest.raises(StepError, match=r"OpenVINO has no rule for 1 com\.microsoft\.QAttention; remove the fusion"):
        run_step(source, tmp_path)


def test_fused_operator_with_a_rule_is_converted(exported: Callable[..., Artifact], tmp_path: Path) -> None:
    gelu, add = "/encoder/layer.0/intermediate/intermediate_act_fn/Gelu", "/encoder/layer.0/intermediate/dense/Add"
    product = "/encoder/layer.0/intermediate/dense/MatMul_output_0"
    bias = "encoder.layer.0.intermediate.dense.bias"
    node = onnx.helper.make_node("BiasGelu", [product, bias], [f"{gelu}_output_0"], gelu, domain="com.microsoft")
    source = altered(exported(), tmp_path, lambda folder: replace_operator(folder, gelu, node, drop=add))
    out, report = run_step(source, tmp_path)
    assert report.facts["foreign_operators"] == {"com.microsoft.BiasGelu": 1}
    feeds = make_feeds(3, 17)
    for left, right in zip(compile_f32(out)(feeds), run_onnxruntime(exported(), feeds), strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=TINY_ABSOLUTE)


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_truncated_graph_is_one_clear_error(
    exported: Callable[..., Artifact], tmp_path: Path, kept: float, capfd: pytest.CaptureFixture[str]
) -> None:
    def truncate(folder: Path) -> None:
        content = (folder / "model.onnx").read_bytes()
        (folder / "model.onnx").write_bytes(content[: int(kept * len(content)) if kept < 1 else int(kept)])

    source = altered(exported(), tmp_path, truncate)
    with pytest.raises(StepError, match=r"model\.onnx: .*the file may be truncated: make the artifact again"):
        run_step(source, tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kept", [None, 20_000])
def test_missing_or_short_weights_are_one_clear_error(exported: Callable[..., Artifact], tmp_path: Path, kept: int | None) -> None:
    def damage(folder: Path) -> None:
        data = folder / "model.onnx_data"
        content = data.read_bytes()
        data.unlink()
        if kept is not None:
            data.write_bytes(content[:kept])

    source = altered(exported(external=True), tmp_path, damage)
    with pytest.raises(StepError, match=r"OpenVINO cannot read it: .*model\.onnx_data.*is broken: make the artifact again"):
        run_step(source, tmp_path)


def test_graph_with_other_outputs_is_refused(exported: Callable[..., Artifact], tmp_path: Path) -> None:
    def drop_output(folder: Path) -> None:
        model = onnx.load(folder / "model.onnx")
        del model.graph.output[1]
        onnx.save(model, folder / "model.onnx")

    source = altered(exported(), tmp_path, drop_output)
    with pytest.raises(StepError, match=r"has inputs and outputs input_ids, attention_mask, last_hidden_state, not .*sentence_embedding"):
        run_step(source, tmp_path)


def test_unwritable_output_is_one_clear_error(exported: Callable[..., Artifact], tmp_path: Path) -> None:
    """A folder where the file should go; a full disk raises at the same place."""
    blocked = tmp_path / "out/openvino"
    blocked.mkdir(parents=True)
    context = StepContext(scratch=tmp_path, machine=read_machine())
    with pytest.raises(MachineError, match=r"openvino_model\.xml: cannot be written: .*; free some space and run again"):
        ConvertOpenvino().run(exported(), tmp_path / "out", context)


def test_nothing_is_sent_and_nothing_printed(exported: Callable[..., Artifact], tmp_path: Path) -> None:
    source = exported()
    (tmp_path / "out").mkdir()
    script = f"""
import sys
from pathlib import Path
from optbench.artifact.folder import open_artifact
from optbench.machine.cpu import read_machine
from optbench.steps.base import StepContext
from optbench.steps.convert_openvino import ConvertOpenvino
assert not {{"openvino", "onnx"}} & sys.modules.keys()
context = StepContext(scratch=Path({str(tmp_path)!r}), machine=read_machine())
ConvertOpenvino().run(open_artifact(Path({str(source.path)!r})), Path({str(tmp_path / "out")!r}), context)
assert "openvino" in sys.modules and sys.modules["openvino_telemetry"] is None
"""
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")
