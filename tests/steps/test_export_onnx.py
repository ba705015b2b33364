"""export_onnx: the graph is the model, for every shape, and its names say where each part comes from."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.numpy import load_file
from transformers import MPNetConfig, MPNetModel

from optbench.artifact.folder import Artifact, open_artifact, seal
from optbench.artifact.manifest import Kind
from optbench.engines.contract import OUTPUTS
from optbench.errors import BaseModelError, MachineError, StepError
from optbench.machine.cpu import read_machine
from optbench.model.checkpoint import read_body
from optbench.model.torch_model import build_module
from optbench.steps.base import StepContext, StepReport
from optbench.steps.export_onnx import ExportOnnx, check_operators
from optbench.steps.onnx import file as onnx_file

# (architecture, pooling, normalize)
MODELS = [("BertModel", "mean", True), ("BertModel", "cls", False), ("XLMRobertaModel", "cls", True), ("XLMRobertaModel", "mean", False)]
# float32 rounds to 6e-8 of a value; the tiny model's longest sum has 64 terms, and a path through its 2 layers 8 such sums, so
# a sum that happens in another order moves values of order 1 by at most 64 x 8 x 6e-8.
TINY_ABSOLUTE = 3e-5


def run_step(source: Artifact, folder: Path, **options: Any) -> tuple[Path, StepReport]:
    out, scratch = folder / "out", folder / "scratch"
    out.mkdir()
    scratch.mkdir()
    return out, ExportOnnx(**options).run(source, out, StepContext(scratch=scratch, machine=read_machine()))


def test_graph_truncates_after_normalization_as_sentence_transformers_does(
    make_checkpoint: Callable[..., Artifact], tmp_path: Path
) -> None:
    source = make_checkpoint()
    copy = tmp_path / "source"
    shutil.copytree(source.path, copy)
    (copy / "manifest.json").unlink()
    settings = json.loads((copy / "config_sentence_transformers.json").read_text())
    (copy / "config_sentence_transformers.json").write_text(json.dumps({**settings, "truncate_dim": 12}))
    out, _ = run_step(seal(copy, tmp_path / "sealed", Kind.CHECKPOINT, "random"), tmp_path)
    session = ort.InferenceSession(str(out / "onnx" / "model.onnx"))
    ids = np.array([[1, 5, 6, 2], [1, 7, 8, 2]])
    (rows,) = session.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    with torch.inference_mode():
        whole = build_module(source.path)(torch.tensor(ids), torch.ones(2, 4, dtype=torch.int64))[1].numpy()
    assert rows.shape == (2, 12)
    np.testing.assert_allclose(rows, whole[:, :12], atol=TINY_ABSOLUTE)
    assert json.loads((out / "config_sentence_transformers.json").read_text())["truncate_dim"] == 12


@pytest.fixture(scope="module")
def export(make_checkpoint: Callable[..., Artifact], make_artifact: Callable[..., Artifact]) -> Callable[..., tuple[Artifact, Path]]:
    def make(architecture: str = "BertModel", pooling: str = "mean", normalize: bool = True) -> tuple[Artifact, Path]:
        options = {} if normalize else {"normalize": False}
        source = make_checkpoint(architecture, pooling, **options)
        return source, make_artifact(Kind.ONNX, architecture, pooling, **options).path

    return make


def open_session(folder: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(folder / "onnx/model.onnx"), options)


Batch = tuple[NDArray[np.int64], NDArray[np.int64]]


def make_batch(lengths: list[int], width: int, side: str, pad_id: int, vocabulary: int) -> Batch:
    rng = np.random.default_rng(sum(lengths) + width)
    ids = rng.integers(4, vocabulary, (len(lengths), width))
    mask = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        mask[row, : length if side == "right" else None][-length:] = 1
    return np.where(mask == 1, ids, pad_id), mask


def every_shape(pad_id: int, vocabulary: int, lengths_alone: Sequence[int]) -> Iterator[Batch]:
    longest = max(lengths_alone)
    for length in lengths_alone:
        yield make_batch([length], length, "right", pad_id, vocabulary)
    for side in ("right", "left"):
        for lengths in ([1, 1], [1, longest], [5, 2, 9, 1], [longest, longest - 1, 3]):
            yield make_batch(lengths, max(lengths), side, pad_id, vocabulary)
        yield make_batch([3], 8, side, pad_id, vocabulary)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products are slower on two threads, much so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def compare_with_torch(
    source: Path, exported: Path, lengths_alone: Sequence[int]
) -> Iterator[tuple[Batch, list[NDArray[np.float32]], list[Any]]]:
    module, session, body = build_module(source), open_session(exported), read_body(source)
    for ids, mask in every_shape(body.pad_id, body.vocabulary, lengths_alone):
        found = session.run(None, {"input_ids": ids, "attention_mask": mask})
        with torch.no_grad():
            wanted = [output.numpy() for output in module(torch.from_numpy(ids), torch.from_numpy(mask))]
        yield (ids, mask), found, wanted


def cosine_distance(left: NDArray[Any], right: NDArray[Any]) -> float:
    left, right = left.astype(np.float64), right.astype(np.float64)
    norms = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    return float((1 - (left * right).sum(-1) / norms).max())


@pytest.mark.parametrize(("architecture", "pooling", "normalize"), MODELS)
def test_both_outputs_are_those_of_torch_for_every_length_and_padding(
    export: Callable[..., tuple[Artifact, Path]], architecture: str, pooling: str, normalize: bool
) -> None:
    source, out = export(architecture, pooling, normalize)
    for (ids, _), found, wanted in compare_with_torch(source.path, out, range(1, 65)):
        for name, left, right in zip(OUTPUTS, found, wanted, strict=True):
            assert left.dtype == np.float32
            np.testing.assert_allclose(left, right, rtol=0, atol=TINY_ABSOLUTE, err_msg=f"{name} at {ids.shape}")
        assert np.allclose(np.linalg.norm(found[1], axis=1), 1) == normalize


def test_real_minilm_stays_within_a_ten_thousandth_of_cosine(minilm_checkpoint: Artifact, tmp_path: Path) -> None:
    out, report = run_step(minilm_checkpoint, tmp_path)
    assert report.matched == {"MatMul": 48, "LayerNormalization": 13, "Gelu": 6, "Softmax": 6}
    for (ids, mask), found, wanted in compare_with_torch(minilm_checkpoint.path, out, [1, 2, 3, 17, 64, 256]):
        assert cosine_distance(found[1], wanted[1]) < 1e-4, ids.shape
        assert cosine_distance(found[0][mask == 1], wanted[0][mask == 1]) < 1e-4, ids.shape
    assert (out / "tokenizer.json").read_bytes() == (minilm_checkpoint.path / "tokenizer.json").read_bytes()
    assert (out / "1_Pooling/config.json").is_file()


def test_mpnet_with_its_relative_positions_exports(make_checkpoint: Callable[..., Artifact], tmp_path: Path) -> None:
    staging = tmp_path / "staging"
    shutil.copytree(make_checkpoint("XLMRobertaModel", "mean").path, staging)
    (staging / "manifest.json").unlink()
    torch.manual_seed(3)
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    MPNetModel(MPNetConfig(vocab_size=24, max_position_embeddings=66, initializer_range=0.25, **sizes)).save_pretrained(staging)
    source = seal(staging, tmp_path / "sealed", Kind.CHECKPOINT, "random")
    out, report = run_step(source, tmp_path)
    assert report.matched == {"MatMul": 16, "LayerNormalization": 5, "Gelu": 2, "Softmax": 2}
    for (ids, _), found, wanted in compare_with_torch(source.path, out, range(1, 65)):
        for left, right in zip(found, wanted, strict=True):
            np.testing.assert_allclose(left, right, rtol=0, atol=TINY_ABSOLUTE, err_msg=str(ids.shape))


def test_graph_has_the_promised_inputs_and_outputs(export: Callable[..., tuple[Artifact, Path]]) -> None:
    _, out = export("XLMRobertaModel", "cls")
    session = open_session(out)
    assert [(port.name, port.type, port.shape) for port in session.get_inputs()] == [
        ("input_ids", "tensor(int64)", ["batch", "tokens"]),
        ("attention_mask", "tensor(int64)", ["batch", "tokens"]),
    ]
    assert [(port.name, port.type, port.shape) for port in session.get_outputs()] == [
        ("last_hidden_state", "tensor(float)", ["batch", "tokens", 32]),
        ("sentence_embedding", "tensor(float)", ["batch", 32]),
    ]


@pytest.mark.parametrize("architecture", ["BertModel", "XLMRobertaModel"])
def test_no_node_works_for_the_mask_or_the_token_types(export: Callable[..., tuple[Artifact, Path]], architecture: str) -> None:
    _, out = export(architecture, "mean")
    graph = onnx.load(out / "onnx/model.onnx").graph
    counts = {name: sum(node.op_type == name for node in graph.node) for name in ("MatMul", "LayerNormalization", "Gelu", "Softmax")}
    assert counts == {"MatMul": 16, "LayerNormalization": 5, "Gelu": 2, "Softmax": 2}
    # The mask is (batch, 1, 1, tokens), and the row of token types a constant: nothing is gathered for either.
    assert not {"GatherND", "GatherElements", "Range"} & {node.op_type for node in graph.node}
    assert sum(node.op_type == "Gather" for node in graph.node) == 2


def test_names_say_the_module_and_weights_keep_the_names_of_the_checkpoint(export: Callable[..., tuple[Artifact, Path]]) -> None:
    source, out = export("BertModel", "mean")
    graph = onnx.load(out / "onnx/model.onnx").graph
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    for layer in range(2):
        for part in ("attention/self/query", "attention/self/key", "attention/self/value", "attention/output/dense", "output/dense"):
            assert f"/encoder/layer.{layer}/{part}/MatMul" in names
        assert f"/encoder/layer.{layer}/output/LayerNorm/LayerNormalization" in names
    assert {name.split("/")[1] for name in names} == {"attention_mask", "embeddings", "encoder", "sentence_embedding"}
    tensors = load_file(source.path / "model.safetensors")
    stored = {value.name: onnx.numpy_helper.to_array(value) for value in graph.initializer}
    for name, tensor in tensors.items():
        if name.startswith("pooler.") or name == "embeddings.token_type_embeddings.weight":  # one feeds no output, the other folds
            assert name not in stored
        else:
            linear = name.startswith("encoder.") and tensor.ndim == 2
            np.testing.assert_array_equal(stored[name], tensor.T if linear else tensor, err_msg=name)


def test_equal_biases_of_different_layers_stay_apart(export: Callable[..., tuple[Artifact, Path]]) -> None:
    """A model with random weights has zero biases everywhere; its graph must be that of a trained one."""
    _, out = export("BertModel", "mean")
    graph = onnx.load(out / "onnx/model.onnx").graph
    biases = [node.input[1] for node in graph.node if node.name.endswith("/dense/Add") or node.name.endswith(("query/Add", "key/Add"))]
    assert len(biases) == len(set(biases)) == 10


def test_no_source_lines_of_this_machine_reach_the_file(export: Callable[..., tuple[Artifact, Path]]) -> None:
    content = (export("BertModel", "mean")[1] / "onnx/model.onnx").read_bytes()
    for leak in (b"site-packages", b"pkg.torch", b".py", b'File "'):
        assert leak not in content


def test_exporting_twice_gives_the_same_bytes(export: Callable[..., tuple[Artifact, Path]], tmp_path: Path) -> None:
    source, out = export("XLMRobertaModel", "cls")
    again, _ = run_step(source, tmp_path)
    assert (again / "onnx/model.onnx").read_bytes() == (out / "onnx/model.onnx").read_bytes()


def test_source_is_not_touched(export: Callable[..., tuple[Artifact, Path]]) -> None:
    source, _ = export("BertModel", "mean")
    assert open_artifact(source.path).sha256 == source.sha256


def test_large_weights_go_to_a_data_file_and_the_numbers_stay(
    export: Callable[..., tuple[Artifact, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, inline = export("BertModel", "mean")
    monkeypatch.setattr(onnx_file, "INLINE_BYTES_MAX", 1000)
    out, report = run_step(source, tmp_path)
    assert report.facts["external_data"] is True
    assert sorted(path.name for path in (out / "onnx").iterdir()) == ["model.onnx", "model.onnx_data"]
    ids, mask = make_batch([5, 2], 5, "right", 0, 20)
    feeds = {"input_ids": ids, "attention_mask": mask}
    for left, right in zip(open_session(out).run(None, feeds), open_session(inline).run(None, feeds), strict=True):
        np.testing.assert_array_equal(left, right)


def test_fresh_process_prints_nothing_and_keeps_its_logging(make_checkpoint: Callable[..., Artifact], tmp_path: Path) -> None:
    """The exporter says most when it is first imported, so this cannot be seen from here."""
    source = make_checkpoint("BertModel", "cls")
    (tmp_path / "out").mkdir()
    script = f"""
import logging, sys
from pathlib import Path
from optbench.artifact.folder import open_artifact
from optbench.machine.cpu import read_machine
from optbench.steps.base import StepContext
from optbench.steps.export_onnx import ExportOnnx
assert not {{"torch", "transformers", "onnx", "onnx_ir", "onnxscript"}} & sys.modules.keys()
from transformers.utils import logging as transformers_logging
before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
context = StepContext(scratch=Path({str(tmp_path)!r}), machine=read_machine())
ExportOnnx().run(open_artifact(Path({str(source.path)!r})), Path({str(tmp_path / "out")!r}), context)
assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before
assert logging.getLogger("torch.onnx").level != logging.ERROR
"""
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")


def test_body_with_another_activation_is_refused(make_checkpoint: Callable[..., Artifact], tmp_path: Path) -> None:
    """The near miss: a BERT in all but its activation."""
    staging = tmp_path / "staging"
    shutil.copytree(make_checkpoint("BertModel", "mean").path, staging)
    (staging / "manifest.json").unlink()
    config = json.loads((staging / "config.json").read_text())
    (staging / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    source = seal(staging, tmp_path / "sealed", Kind.CHECKPOINT, "random")
    with pytest.raises(BaseModelError, match=r"config\.json: hidden_act is 'relu': optbench exports the activation gelu"):
        run_step(source, tmp_path)


def test_weight_transposed_at_run_time_is_refused(export: Callable[..., tuple[Artifact, Path]]) -> None:
    source, out = export("BertModel", "mean")
    model = ir.load(out / "onnx/model.onnx")
    product = next(node for node in model.graph if node.name == "/encoder/layer.0/output/dense/MatMul")
    transpose = ir.node("Transpose", [product.inputs[1]], {"perm": [1, 0]}, name="/encoder/layer.0/output/dense/Transpose")
    product.replace_input_with(1, transpose.outputs[0])
    model.graph.insert_before(product, transpose)
    with pytest.raises(StepError, match=r"layer\.0/output/dense/Transpose transposes a weight at run time"):
        check_operators(model, read_body(source.path), source.path)


def test_full_disk_is_one_clear_error(make_checkpoint: Callable[..., Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ir, "save", fail)
    with pytest.raises(MachineError, match=r"onnx/model\.onnx: cannot be written: No space left on device; free some space"):
        run_step(make_checkpoint("BertModel", "mean"), tmp_path)


@pytest.mark.parametrize("opset", [21, 23])
def test_later_opsets_export_the_same_operators(make_checkpoint: Callable[..., Artifact], tmp_path: Path, opset: int) -> None:
    out, report = run_step(make_checkpoint("BertModel", "mean"), tmp_path, opset=opset)
    assert {entry.domain: entry.version for entry in onnx.load(out / "onnx/model.onnx").opset_import} == {"": opset}
    assert report.matched["Gelu"] == 2


def test_opset_without_gelu_is_refused() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 20"):
        ExportOnnx(opset=19)


def test_every_difference_is_listed(make_checkpoint: Callable[..., Artifact]) -> None:
    empty = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 20}), ir_version=10)
    with pytest.raises(StepError, match="0 MatMul, not 16; 0 LayerNormalization, not 5; 0 Gelu, not 2; 0 Softmax, not 2"):
        check_operators(empty, read_body(make_checkpoint().path), Path("some/model"))
