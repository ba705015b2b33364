"""torch_model: bodies whose layers differ are built, resized and saved, and every step and engine takes them."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MPNetConfig, MPNetModel

from optbench.artifact.folder import Artifact, open_artifact, seal
from optbench.artifact.manifest import Kind, LayerSize
from optbench.base.entry import Base
from optbench.base.obtain import obtain_base
from optbench.encoder import load
from optbench.engines.onnxruntime import OnnxRuntime
from optbench.engines.openvino import OpenVino
from optbench.engines.torch import Torch
from optbench.errors import BaseModelError
from optbench.machine.cpu import read_machine
from optbench.model.body import Body
from optbench.model.checkpoint import Description, Pooling, Prompts, read_body, write_layout
from optbench.model.torch_model import build_module, encoder_layers, load_torch_model, resize_layer, save_torch_model
from optbench.steps import BaseStep
from optbench.steps.base import CalibrationTexts, StepContext
from optbench.steps.convert_openvino import ConvertOpenvino
from optbench.steps.export_onnx import ExportOnnx
from optbench.steps.fuse_graph import FuseGraph
from optbench.steps.quantize_static import QuantizeStatic

# Layer by layer: the heads and the feed-forward neurons that stay.
KEPT: list[tuple[list[int], list[int]]] = [([1], list(range(0, 64, 2))), ([0, 2, 3], list(range(48)))]
IDS = torch.tensor([[1, 5, 6, 2, 9, 4], [1, 7, 2, 0, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
# See tests/steps/test_export_onnx.py: sums of at most 64 terms, 8 a path and layer, in another order.
TINY_ABSOLUTE = 3e-5


def write_mpnet(folder: Path, pooling: Pooling = "mean") -> None:
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 21}
    torch.manual_seed(7)
    MPNetModel(MPNetConfig(max_position_embeddings=66, pad_token_id=1, initializer_range=0.25, **sizes)).save_pretrained(folder)
    body = Body(architecture="MPNetModel", layers=2, hidden=32, heads=4, feed_forward=64, vocabulary=21, positions=66, pad_id=1)
    write_layout(folder, Description(body=body, pooling=pooling, normalize=True, prompts=Prompts(), max_tokens=64))


def prune(source: Path, out: Path) -> Any:
    """Write `source` with KEPT's heads and neurons to `out`, and return the model in memory."""
    model = load_torch_model(source)
    for layer, (heads, neurons) in zip(encoder_layers(model), KEPT, strict=True):
        resize_layer(layer, heads, neurons)
    out.mkdir()
    save_torch_model(model, source, out)
    return model


@pytest.fixture(scope="module", params=["BertModel", "XLMRobertaModel", "MPNetModel"])
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Artifact]) -> Callable[[str], tuple[Path, Path, Any]]:
    """The whole checkpoint of an architecture, the pruned one, and the pruned model as it was in memory."""
    made: dict[str, tuple[Path, Path, Any]] = {}

    def make(architecture: str) -> tuple[Path, Path, Any]:
        if architecture not in made:
            folder = tmp_path_factory.mktemp("pruned")
            if architecture == "MPNetModel":
                source = folder / "mpnet"
                write_mpnet(source)
                shutil.copyfile(make_checkpoint("XLMRobertaModel").path / "tokenizer.json", source / "tokenizer.json")
            else:
                source = make_checkpoint(architecture).path
            made[architecture] = source, folder / "out", prune(source, folder / "out")
        return made[architecture]

    return make


def test_reloaded_model_is_bit_equal(architecture: str, pruned: Callable[[str], tuple[Path, Path, Any]]) -> None:
    _, folder, model = pruned(architecture)
    again = load_torch_model(folder)
    assert [(layer.heads, layer.feed_forward) for layer in encoder_layers(again)] == [(1, 32), (3, 48)]
    with torch.no_grad():
        wanted = model(input_ids=IDS, attention_mask=MASK).last_hidden_state
        assert torch.equal(again(input_ids=IDS, attention_mask=MASK).last_hidden_state, wanted)


def test_resized_layers_compute_what_zeroed_heads_and_neurons_do(
    architecture: str, pruned: Callable[[str], tuple[Path, Path, Any]]
) -> None:
    source, folder, _ = pruned(architecture)
    whole, again = load_torch_model(source), load_torch_model(folder)
    with torch.no_grad():
        for layer, (heads, neurons) in zip(encoder_layers(whole), KEPT, strict=True):
            keep = torch.zeros(4)
            keep[heads] = 1
            layer.projection.weight *= keep.repeat_interleave(8)
            keep = torch.zeros(64)
            keep[neurons] = 1
            layer.down.weight *= keep
        wanted = whole(input_ids=IDS, attention_mask=MASK).last_hidden_state
        found = again(input_ids=IDS, attention_mask=MASK).last_hidden_state
    np.testing.assert_allclose(found, wanted, atol=TINY_ABSOLUTE)
    assert whole(input_ids=IDS).last_hidden_state.shape == found.shape


def test_sizes_stand_in_config_and_manifest(tmp_path: Path, pruned: Callable[[str], tuple[Path, Path, Any]]) -> None:
    _, folder, model = pruned("BertModel")
    body = read_body(folder)
    assert (body.layers, body.heads, body.layer_heads, body.layer_feed_forward) == (2, 4, (1, 3), (32, 48))
    assert body.parameters == sum(parameter.numel() for parameter in model.parameters())
    artifact = seal(shutil.copytree(folder, tmp_path / "staging"), tmp_path / "sealed", Kind.CHECKPOINT, "random", body.layer_sizes)
    assert artifact.manifest.layers == (LayerSize(heads=1, feed_forward=32), LayerSize(heads=3, feed_forward=48))
    assert open_artifact(artifact.path).sha256 == artifact.sha256


def test_layers_alike_and_fewer_are_said_in_keys_that_transformers_reads(tmp_path: Path, make_checkpoint: Callable[..., Artifact]) -> None:
    from transformers import AutoModel

    source = make_checkpoint("BertModel").path
    model = load_torch_model(source)
    del model.encoder.layer[0]
    resize_layer(encoder_layers(model)[0], range(4), range(32))
    save_torch_model(model, source, tmp_path)
    assert not read_body(tmp_path).is_pruned
    again = AutoModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    with torch.no_grad():
        wanted = model(input_ids=IDS, attention_mask=MASK).last_hidden_state
        assert torch.equal(again(input_ids=IDS, attention_mask=MASK).last_hidden_state, wanted)


def test_pruned_model_can_be_trained_and_saved_again(tmp_path: Path, pruned: Callable[[str], tuple[Path, Path, Any]]) -> None:
    _, folder, _ = pruned("BertModel")
    before = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    model = load_torch_model(folder).train()
    assert all(parameter.requires_grad for parameter in model.parameters())
    model(input_ids=IDS, attention_mask=MASK).last_hidden_state.square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    save_torch_model(model, folder, tmp_path)
    after = load_file(tmp_path / "model.safetensors")
    assert read_body(tmp_path) == read_body(folder)
    assert not torch.equal(after["encoder.layer.0.output.dense.weight"], before["encoder.layer.0.output.dense.weight"])
    # Training writes to memory of its own, never through the map of the file it was loaded from.
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_file(folder / "model.safetensors").items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_num_attention_heads": [1]}, "layer_heads [1]: expected 2 sizes of at most 4, one per layer"),
        ({"layer_num_attention_heads": [1, 5]}, "layer_heads [1, 5]: expected 2 sizes of at most 4"),
        ({"layer_intermediate_size": [32, 0]}, "layer_intermediate_size is 0: Input should be greater than or equal to 1"),
        ({"layer_intermediate_size": "32"}, "layer_intermediate_size is '32': Input should be a valid tuple"),
        ({"layer_position_bias_heads": [[0], [1]]}, "position_bias_heads: expected one column below 4 for each head of each layer"),
    ],
)
def test_sizes_that_do_not_fit_are_an_error(
    tmp_path: Path, pruned: Callable[[str], tuple[Path, Path, Any]], change: dict[str, Any], message: str
) -> None:
    folder = shutil.copytree(pruned("BertModel")[1], tmp_path / "copy")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BaseModelError) as caught:
        read_body(folder)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_weights_of_other_sizes_and_missing_ones_are_errors(tmp_path: Path, pruned: Callable[[str], tuple[Path, Path, Any]]) -> None:
    folder = shutil.copytree(pruned("BertModel")[1], tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    short = {name: tensor for name, tensor in weights.items() if "layer.1.output" not in name}
    save_file(short, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BaseModelError, match=r"the weights lack encoder\.layer\.1\.output\..* \(4 in all\); download the model again"):
        build_module(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "layer_intermediate_size": [48, 48]}))
    with pytest.raises(BaseModelError, match=r"its weights cannot be loaded: (?s:.*)size mismatch"):
        build_module(folder)


def run(step: BaseStep, source: Artifact, folder: Path, **context: Any) -> Artifact:
    (folder / "out").mkdir(parents=True)
    (folder / "scratch").mkdir()
    step.run(source, folder / "out", StepContext(scratch=folder / "scratch", machine=read_machine(), **context))
    layers = read_body(folder / "out").layer_sizes
    return seal(folder / "out", folder / "sealed", step.gives, "random", layers)


def test_every_step_engine_and_layout_takes_unequal_layers(tmp_path: Path, pruned: Callable[[str], tuple[Path, Path, Any]]) -> None:
    folder = shutil.copytree(pruned("BertModel")[1], tmp_path / "staging")
    checkpoint = seal(folder, tmp_path / "checkpoint", Kind.CHECKPOINT, "random", read_body(folder).layer_sizes)
    exported = run(ExportOnnx(), checkpoint, tmp_path / "export")
    fused = run(FuseGraph.model_validate({"fusions": [{"name": "attention", "keep": "always"}]}), exported, tmp_path / "fuse")
    converted = run(ConvertOpenvino(), exported, tmp_path / "convert")
    quantized = run(QuantizeStatic(), converted, tmp_path / "quantize", values={CalibrationTexts: ["red shoe", "oak desk lamp small"]})
    ids, mask = IDS.numpy(), MASK.numpy()
    wanted = build_module(checkpoint.path)(IDS, MASK)[1].detach().numpy()
    cells = [(Torch(), checkpoint), (OnnxRuntime(), exported), (OnnxRuntime(), fused), (OpenVino(), converted), (OpenVino(), quantized)]
    for engine, artifact in cells:
        assert len(artifact.manifest.layers) == 2
        session = engine.open(artifact)
        try:
            found = session.embed(ids, mask)
        finally:
            session.close()
        if artifact is quantized:
            # Two texts calibrate a random model poorly; that it is the same model is all that is asked here.
            assert (found * wanted).sum(axis=1).min() > 0.9
        else:
            np.testing.assert_allclose(found, wanted, atol=TINY_ABSOLUTE, err_msg=str(artifact.path))
    assert load(converted.path).encode(["red shoe", "lamp"]).shape == (2, 32)


def test_heads_with_a_position_bias_are_exported_with_their_own_columns(
    tmp_path: Path, pruned: Callable[[str], tuple[Path, Path, Any]]
) -> None:
    folder = shutil.copytree(pruned("MPNetModel")[1], tmp_path / "staging")
    exported = run(ExportOnnx(), seal(folder, tmp_path / "checkpoint", Kind.CHECKPOINT, "random"), tmp_path / "export")
    session = OnnxRuntime().open(exported)
    found = session.embed(IDS.numpy(), MASK.numpy())
    session.close()
    np.testing.assert_allclose(found, build_module(tmp_path / "checkpoint")(IDS, MASK)[1].detach().numpy(), atol=TINY_ABSOLUTE)


def test_pruned_checkpoint_is_a_base_if_the_recipe_says_its_sizes(tmp_path: Path, pruned: Callable[[str], tuple[Path, Path, Any]]) -> None:
    _, folder, _ = pruned("BertModel")
    body = read_body(folder)
    base = Base(source=f"path:{folder}", license="MIT", body=body, pooling="mean", normalize=True, max_tokens=64)
    artifact = obtain_base(base, cache=tmp_path, weights="real", override=None)
    assert artifact.manifest.layers == body.layer_sizes
    alike = base.model_copy(update={"body": body.model_copy(update={"layer_heads": None})})
    with pytest.raises(BaseModelError, match=r"body\.layer_heads: the recipe says None, config\.json says \(1, 3\)"):
        obtain_base(alike, cache=tmp_path / "other", weights="real", override=None)


def test_random_weights_of_unequal_layers_have_the_sizes_asked_for(tmp_path: Path, pruned: Callable[[str], tuple[Path, Path, Any]]) -> None:
    body = read_body(pruned("BertModel")[1]).model_copy(update={"vocabulary": 3000})
    base = Base(source="path:/nowhere", license="MIT", body=body, pooling="mean", normalize=True, max_tokens=64)
    artifact = obtain_base(base, cache=tmp_path, weights="random", override=None)
    assert [(layer.heads, layer.feed_forward) for layer in encoder_layers(load_torch_model(artifact.path))] == [(1, 32), (3, 48)]


def test_loading_a_model_leaves_scikit_learn_unloaded_but_importable(make_artifact: Callable[..., Artifact]) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom optbench.model.torch_model import build_module\n"
        "build_module(Path(sys.argv[1]))\nprint('sklearn' in sys.modules)\nimport sklearn\nprint(sklearn.__name__)"
    )
    command = [sys.executable, "-c", program, str(make_artifact(Kind.CHECKPOINT).path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "sklearn"]
