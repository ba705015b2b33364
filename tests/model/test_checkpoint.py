"""Checkpoint folders: what they say of themselves, each way they can be broken, and the module that is built of them."""

import json
import logging
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optbench.artifact.folder import Artifact
from optbench.errors import BaseModelError
from optbench.model.body import Body
from optbench.model.checkpoint import Description, Prompts, describe, read_body, read_json, read_max_tokens, write_layout
from optbench.model.torch_model import build_module

Change = Callable[[Any], object]


@pytest.fixture
def folder(tmp_path: Path, make_checkpoint: Callable[..., Artifact]) -> Path:
    """A copy of the tiny BERT that may be broken."""
    return shutil.copytree(make_checkpoint("BertModel", "mean").path, tmp_path / "checkpoint")


def edit(path: Path, change: Change) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


# Describing.


@pytest.mark.parametrize("architecture", ["BertModel", "XLMRobertaModel"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_tiny_checkpoint_is_described_as_it_was_made(make_checkpoint: Callable[..., Artifact], architecture: str, pooling: str) -> None:
    found = describe(make_checkpoint(architecture, pooling, normalize=pooling == "mean", prompt="query: ").path)
    bert = architecture == "BertModel"
    assert found.body == Body(
        architecture=architecture,
        layers=2,
        hidden=32,
        heads=4,
        feed_forward=64,
        vocabulary=21,
        positions=64 if bert else 66,
        type_vocabulary=2 if bert else 1,
        layer_norm_epsilon=1e-12 if bert else 1e-5,
        pad_id=0 if bert else 1,
    )
    assert (found.pooling, found.normalize, found.prompts.query) == (pooling, pooling == "mean", "query: ")
    # 66 positions less the two that XLM-R spends on padding.
    assert found.max_tokens == 64


def test_minilm_is_described_as_its_authors_say(minilm_checkpoint: Artifact) -> None:
    found = describe(minilm_checkpoint.path)
    assert found == Description(
        body=Body(
            architecture="BertModel",
            layers=6,
            hidden=384,
            heads=12,
            feed_forward=1536,
            vocabulary=30522,
            positions=512,
            type_vocabulary=2,
        ),
        pooling="mean",
        normalize=True,
        prompts=Prompts(),
        max_tokens=256,
    )
    # The model card's 22.7 million, less the pooler head of 384 x 384 + 384 that feeds no output.
    assert found.body.parameters == 22_713_216 - 147_840


def test_layout_that_is_written_is_read_back(tmp_path: Path, folder: Path) -> None:
    written = describe(folder).model_copy(update={"pooling": "cls", "normalize": False, "prompts": Prompts(query="q: ", document="d: ")})
    shutil.copyfile(folder / "config.json", tmp_path / "config.json")
    write_layout(tmp_path, written)
    assert describe(tmp_path) == written


def test_passage_prompt_is_the_document_prompt(folder: Path) -> None:
    edit(folder / "config_sentence_transformers.json", lambda config: config.update(prompts={"query": "q", "passage": "p"}))
    assert describe(folder).prompts == Prompts(query="q", document="p")


def test_longest_input_is_cut_to_the_position_table(folder: Path) -> None:
    edit(folder / "sentence_bert_config.json", lambda config: config.update(max_seq_length=512))
    assert read_max_tokens(folder) == 64
    (folder / "sentence_bert_config.json").unlink()
    assert read_max_tokens(folder) == 64


def test_keys_that_a_config_may_leave_out_get_the_defaults_of_transformers(folder: Path) -> None:
    edit(folder / "config.json", lambda config: [config.pop(key) for key in ("type_vocab_size", "layer_norm_eps", "pad_token_id")])
    body = read_body(folder)
    assert (body.type_vocabulary, body.layer_norm_epsilon, body.pad_id) == (2, 1e-12, 0)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", lambda c: c.update(model_type="deberta"), "model_type 'deberta'; optbench supports bert, xlm-roberta"),
        ("config.json", lambda c: c.update(model_type=["bert"]), "model_type ['bert']; optbench supports"),
        ("config.json", lambda c: c.pop("model_type"), "model_type None; optbench supports"),
        ("config.json", lambda c: c.update(auto_map={"AutoModel": "evil.Model"}), "auto_map asks to run code from the checkpoint"),
        ("config.json", lambda c: c.update(transformers_weights="../x.safetensors"), "transformers_weights names another weight file"),
        (
            "config.json",
            lambda c: c.update(quantization_config={"bits": 4}),
            "quantization_config says that the weights are quantized already",
        ),
        (
            "config.json",
            lambda c: [c.pop("hidden_size"), c.pop("vocab_size")],
            "lacks hidden_size, vocab_size; the config is incomplete",
        ),
        ("config.json", lambda c: c.update(num_hidden_layers=0), "num_hidden_layers is 0: Input should be greater than or equal to 1"),
        ("config.json", lambda c: c.update(hidden_size="32"), "hidden_size is '32': Input should be a valid integer"),
        ("config.json", lambda c: c.update(pad_token_id=None), "pad_token_id is None: Input should be a valid integer"),
        (
            "modules.json",
            lambda m: m.append({"type": "sentence_transformers.models.Dense"}),
            "module 'sentence_transformers.models.Dense' cannot",
        ),
        ("modules.json", lambda m: m[0].update(type="evil.Transformer"), "module 'evil.Transformer' cannot be exported"),
        ("modules.json", lambda m: m.pop(1), "modules Transformer, Normalize; expected Transformer, Pooling and at most one Normalize"),
        ("modules.json", lambda m: m.append(m[1]), "modules Transformer, Pooling, Normalize, Pooling; expected"),
        ("modules.json", lambda m: m.reverse(), "modules Normalize, Pooling, Transformer; expected"),
        ("modules.json", lambda m: m.clear(), "modules none; expected"),
        ("modules.json", lambda m: m.insert(0, "Transformer"), "expected a list of modules"),
        ("modules.json", lambda m: m[0].update(path="0_Transformer"), "the transformer lies in '0_Transformer'; move its files to the top"),
        ("modules.json", lambda m: m[1].update(path="../other"), "the pooling path '../other' points outside the folder"),
        ("modules.json", lambda m: m[1].update(path="/etc"), "the pooling path '/etc' points outside the folder"),
        ("modules.json", lambda m: m[1].update(path="a\0b"), "points outside the folder"),
        ("modules.json", lambda m: m[1].update(path="9_Pooling"), "9_Pooling/config.json: No such file or directory"),
        (
            "1_Pooling/config.json",
            lambda p: p.update(pooling_mode_mean_tokens=False),
            "no pooling mode; optbench exports mean or cls pooling",
        ),
        (
            "1_Pooling/config.json",
            lambda p: p.update(pooling_mode_max_tokens=True),
            "pooling_mode_mean_tokens and pooling_mode_max_tokens; optb",
        ),
        (
            "1_Pooling/config.json",
            lambda p: p.update(pooling_mode="weightedmean"),
            "pooling_mode_weightedmean; optbench exports mean or cls",
        ),
        (
            "1_Pooling/config.json",
            lambda p: p.update(include_prompt=False),
            "include_prompt is false: optbench does not export pooling that leaves out",
        ),
        ("config_sentence_transformers.json", lambda c: c.update(prompts=["query"]), 'prompts ["query"]; expected an object of strings'),
        ("config_sentence_transformers.json", lambda c: c.update(prompts={"query": 1}), "expected an object of strings"),
        ("sentence_bert_config.json", lambda c: c.update(max_seq_length="many"), "max_seq_length is 'many'; expected a number of tokens"),
        ("sentence_bert_config.json", lambda c: c.update(max_seq_length=-5), "max_seq_length is -5; expected a number of tokens"),
    ],
)
def test_broken_folder_is_an_error_with_file_and_cure(folder: Path, name: str, change: Change, message: str) -> None:
    edit(folder / name, change)
    with pytest.raises(BaseModelError) as caught:
        describe(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "modules.json", "1_Pooling/config.json"])
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BaseModelError, match=name):
        describe(folder)


def test_position_table_without_room_is_an_error(tmp_path: Path, make_checkpoint: Callable[..., Artifact]) -> None:
    folder = shutil.copytree(make_checkpoint("XLMRobertaModel", "mean").path, tmp_path / "checkpoint")
    edit(folder / "config.json", lambda config: config.update(max_position_embeddings=2))
    with pytest.raises(BaseModelError, match="max_position_embeddings 2 leaves no position beside pad_token_id 1"):
        describe(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": ', "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 200_000, "not JSON"),
        (b"1" * 5_000, "not JSON"),
    ],
)
def test_file_that_is_no_json_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(BaseModelError, match=message):
        read_json(path)


def test_json_that_is_no_object_is_an_error(folder: Path) -> None:
    (folder / "config.json").write_text("[]")
    with pytest.raises(BaseModelError, match=r"config\.json: a JSON list, expected an object"):
        read_body(folder)


def test_giant_json_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.touch()
    os.truncate(path, 17 * 2**20)
    with pytest.raises(BaseModelError, match="larger than 16777216 bytes"):
        read_json(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


# Each example writes the folder again.
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_a_folder_says_only_a_base_model_error_comes_out(folder: Path, data: st.DataObject) -> None:
    name = data.draw(
        st.sampled_from(
            [
                "config.json",
                "modules.json",
                "1_Pooling/config.json",
                "config_sentence_transformers.json",
                "sentence_bert_config.json",
            ]
        )
    )
    path = folder / name
    content = path.read_bytes()
    document = json.loads(content)
    if data.draw(st.booleans()):
        document = data.draw(json_values)
    elif isinstance(document, dict):
        document[data.draw(st.sampled_from(sorted(document)))] = data.draw(json_values)
    else:
        module = data.draw(st.sampled_from(document))
        module[data.draw(st.sampled_from(sorted(module)))] = data.draw(json_values)
    try:
        path.write_text(json.dumps(document))
        assert describe(folder).max_tokens >= 1
    except BaseModelError:
        pass
    finally:
        path.write_bytes(content)


# Building.


def test_module_gives_both_outputs_and_ignores_padding(make_checkpoint: Callable[..., Artifact]) -> None:
    import torch

    module = build_module(make_checkpoint("BertModel", "mean").path)
    ids = torch.tensor([[1, 5, 6, 2], [1, 7, 2, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    with torch.no_grad():
        hidden, pooled = module(ids, mask)
        alone = module(ids[1:, :3], mask[1:, :3])[1]
    assert hidden.shape == (2, 4, 32)
    assert hidden.dtype == pooled.dtype == torch.float32
    # A masked position gets exactly zero weight; another shape may sum in another order: some units in the last place of 1.
    np.testing.assert_allclose(pooled[1:], alone, atol=1e-6)
    np.testing.assert_allclose(pooled.norm(dim=1), 1, atol=1e-6)


def test_cls_pooling_takes_the_first_token_unnormalized(make_checkpoint: Callable[..., Artifact]) -> None:
    import torch

    module = build_module(make_checkpoint("XLMRobertaModel", "cls", normalize=False).path)
    with torch.no_grad():
        hidden, pooled = module(torch.tensor([[0, 5, 2]]), torch.ones(1, 3, dtype=torch.long))
    assert torch.equal(hidden[:, 0], pooled)


class Listening(logging.Handler):
    """Keeps what is logged: transformers' own handler holds the stderr of the moment it was imported."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())


def test_building_is_quiet_and_leaves_transformers_as_it_was(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from safetensors.numpy import load_file, save_file
    from transformers.utils import logging as noise

    # A key too many makes transformers log a table.
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "classifier.weight": np.zeros((2, 2), np.float32)}, folder / "model.safetensors", {"format": "pt"})
    before = noise.get_verbosity(), noise.is_progress_bar_enabled(), noise.set_tqdm_hook(None)
    listening = Listening()
    logging.getLogger("transformers").addHandler(listening)
    try:
        build_module(folder)
    finally:
        logging.getLogger("transformers").removeHandler(listening)
    assert (noise.get_verbosity(), noise.is_progress_bar_enabled(), noise.set_tqdm_hook(None)) == before
    assert listening.heard == []
    assert capfd.readouterr() == ("", "")


def test_pickles_are_never_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        BaseModelError, match=r"only pytorch_model\.bin, which is a pickle and can run code; optbench reads only safetensors"
    ):
        build_module(folder)


def test_folder_without_weights_is_an_error(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(BaseModelError, match=r"no model\.safetensors; optbench reads only safetensors"):
        build_module(folder)


def test_pickle_that_is_called_safetensors_is_an_error(folder: Path) -> None:
    import pickle

    (folder / "model.safetensors").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(BaseModelError, match="its weights cannot be loaded"):
        build_module(folder)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights_are_an_error(folder: Path, share: float) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.raises(BaseModelError, match=r"its weights cannot be loaded: .*download the model again"):
        build_module(folder)


def test_header_that_points_beyond_the_file_is_an_error(folder: Path) -> None:
    header = json.dumps({"embeddings.word_embeddings.weight": {"dtype": "F32", "shape": [21, 32], "data_offsets": [0, 2688]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(BaseModelError, match="its weights cannot be loaded"):
        build_module(folder)


def test_missing_weights_are_counted_and_named(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "encoder.layer.1.output" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    missing = len(weights) - len(kept)
    with pytest.raises(
        BaseModelError, match=rf"the weights lack encoder\.layer\.1\.output.* \({missing} in all\); download the model again"
    ):
        build_module(folder)


def test_weights_of_another_shape_are_an_error(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config.update(intermediate_size=128))
    with pytest.raises(BaseModelError, match="its weights cannot be loaded"):
        build_module(folder)
