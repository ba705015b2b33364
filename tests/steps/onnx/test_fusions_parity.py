"""Each fusion on the exported tiny models: every place is taken, and the numbers stay, whatever the length and the padding."""

import shutil
from collections.abc import Callable, Iterator

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from optbench.artifact.folder import Artifact, seal
from optbench.artifact.manifest import Kind
from optbench.machine.cpu import read_machine
from optbench.model.checkpoint import read_body
from optbench.steps.base import StepContext
from optbench.steps.export_onnx import ExportOnnx
from optbench.steps.onnx.fusions import FUSIONS, Outcome


def open_session(model: ir.Model) -> onnxruntime.InferenceSession:
    """A session that computes the operators as they are written: the engine's own fusions are off."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])


def fuse(name: str, model: ir.Model) -> Outcome:
    outcome = FUSIONS[name].apply(model)
    onnx.checker.check_model(ir.to_proto(model))
    return outcome


@pytest.fixture(scope="module", params=[("BertModel", "mean"), ("XLMRobertaModel", "cls")], ids=["bert", "xlm-roberta"])
def exported(
    request: pytest.FixtureRequest, make_checkpoint: Callable[..., Artifact], tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    """A tiny model of two layers whose biases and norms are random too: fresh ones are 0 and 1, and prove nothing."""
    from safetensors.numpy import load_file, save_file

    folder = tmp_path_factory.mktemp("exported")
    shutil.copytree(make_checkpoint(*request.param).path, folder / "staging")
    random = np.random.default_rng(11)
    path = folder / "staging/model.safetensors"
    tensors = load_file(path)
    for name in sorted(tensors):
        if tensors[name].ndim == 1:
            tensors[name] = tensors[name] + random.normal(0, 0.3, tensors[name].shape).astype(np.float32)
    save_file(tensors, path, metadata={"format": "pt"})
    checkpoint = seal(folder / "staging", folder / "checkpoint", Kind.CHECKPOINT, "random")
    (folder / "onnx").mkdir()
    (folder / "scratch").mkdir()
    ExportOnnx().run(checkpoint, folder / "onnx", StepContext(scratch=folder / "scratch", machine=read_machine()))
    return seal(folder / "onnx", folder / "sealed", Kind.ONNX, "random")


def batches() -> Iterator[dict[str, NDArray[np.int64]]]:
    """Every length alone, then ragged batches padded right and left, with the pad id of both models under the padding."""
    random = np.random.default_rng(4)
    for length in range(1, 65):
        yield {"input_ids": random.integers(4, 21, (1, length)), "attention_mask": np.ones((1, length), np.int64)}
    for left in (False, True):
        lengths = np.array([1, 17, 64, 40])
        order = np.arange(64)[::-1] if left else np.arange(64)
        mask = (order[None] < lengths[:, None]).astype(np.int64)
        yield {"input_ids": np.where(mask == 1, random.integers(4, 21, (4, 64)), 1), "attention_mask": mask}


ALL = [[name] for name in FUSIONS] + [["attention", "bias_gelu", "skip_layer_norm", "embed_layer_norm"], ["packed_qkv", "skip_layer_norm"]]


@pytest.mark.parametrize("names", ALL, ids="+".join)
def test_fused_tiny_model_gives_the_same_embeddings(exported: Artifact, names: list[str]) -> None:
    plain, fused = ir.load(exported.main_file), ir.load(exported.main_file)
    for name in names:
        outcome = fuse(name, fused)
        assert outcome.matched == FUSIONS[name].expected(read_body(exported.path))
        assert outcome.refused == ()
    assert [value.name for value in fused.graph.outputs] == ["last_hidden_state", "sentence_embedding"]
    assert [value.name for value in fused.graph.inputs] == ["input_ids", "attention_mask"]
    sessions = [open_session(model) for model in (plain, fused)]
    for feed in batches():
        before, after = (session.run(None, feed) for session in sessions)
        # Five normalizations, each of 32 elements of size at most 8 summed in another order: 5 * 32 * 8 * 2^-24 = 8e-5, were all
        # errors to add up; they are random, so a root of that count is the scale: 5e-6. The embedding has length 1.
        np.testing.assert_allclose(after[0], before[0], atol=2e-5)
        np.testing.assert_allclose(after[1], before[1], atol=5e-6)


def test_layers_share_one_cast_of_the_mask(exported: Artifact) -> None:
    model = ir.load(exported.main_file)
    fuse("attention", model)
    casts = {node.inputs[3] for node in model.graph if node.op_type == "Attention"}
    assert len(casts) == 1


def test_packed_projections_are_read_by_openvino(exported: Artifact) -> None:
    import openvino

    plain, fused = ir.load(exported.main_file), ir.load(exported.main_file)
    fuse("packed_qkv", fused)
    core = openvino.Core()
    # Without the hint a CPU with bf16 would compute in bf16.
    compiled = core.compile_model(core.read_model(ir.to_proto(fused).SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    feed = list(batches())[-1]
    # As above, between two engines: every product is summed in another order.
    np.testing.assert_allclose(compiled(feed)["sentence_embedding"], open_session(plain).run(["sentence_embedding"], feed)[0], atol=2e-5)
