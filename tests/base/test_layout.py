"""The layout of a base: what the recipe and the checkpoint's files settle, for every loader, and the tokenizer that transformers builds."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from optbench.artifact.folder import Artifact
from optbench.base.entry import Base
from optbench.base.obtain import check_source, obtain_base
from optbench.base.origin import read_origin
from optbench.errors import BaseModelError
from optbench.model.checkpoint import Prompts, describe


@pytest.fixture
def base(folder: Path) -> Base:
    return Base(source=f"path:{folder}", license="MIT", **describe(folder).model_dump())


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def obtain(base: Base, tmp_path: Path) -> Artifact:
    return obtain_base(base, cache=tmp_path / "cache")


@pytest.mark.parametrize("prefix", ["bert.", "0.auto_model."])
def test_names_with_a_prefix_are_read(prefix: str, base: Base, folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    prefixed = {prefix + name: value for name, value in weights.items()}
    save_file({**prefixed, "cls.bias": weights["pooler.dense.bias"]}, folder / "model.safetensors")
    artifact = obtain(base, tmp_path)
    read = load_file(artifact.path / "model.safetensors")
    assert set(read) == {*weights, "cls.bias"}
    for name, value in weights.items():
        np.testing.assert_array_equal(read[name], value)


def test_every_loader_reads_the_recipes_settings(base: Base, folder: Path, tmp_path: Path) -> None:
    edit(folder / "config_sentence_transformers.json", prompts={"passage": "p: ", "clustering": "c: "}, default_prompt_name="clustering")
    chosen = {"max_tokens": 32, "dimension": 8, "similarity": "dot", "default_prompt": "clustering", "prompts": Prompts(document="p: ")}
    edit(folder / "config_sentence_transformers.json", similarity_fn_name=None)
    path = obtain(base.model_copy(update=chosen), tmp_path).path
    found = describe(path)
    assert {name: getattr(found, name) for name in chosen} == chosen
    settings = json.loads((path / "config_sentence_transformers.json").read_text())
    # encode_document of sentence-transformers uses `document` alone.
    assert settings["prompts"] == {"passage": "p: ", "clustering": "c: ", "query": "", "document": "p: "}
    assert json.loads((path / "tokenizer_config.json").read_text())["model_max_length"] == 32
    assert json.loads((path / "sentence_bert_config.json").read_text())["max_seq_length"] == 32


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"truncate_dim": 16}, r"dimension: the recipe says all components, config_sentence_transformers\.json says 16 \(truncate_dim\)"),
        ({"similarity_fn_name": "dot"}, r"similarity: the recipe says cosine, .* says dot \(similarity_fn_name\)"),
        ({"default_prompt_name": "query"}, r"default_prompt: the recipe says none, .* says query \(default_prompt_name\)"),
    ],
)
def test_recipe_that_ignores_a_setting_of_the_checkpoint_contradicts_it(
    stated: dict[str, object], message: str, base: Base, folder: Path, tmp_path: Path
) -> None:
    edit(folder / "config_sentence_transformers.json", **stated)
    with pytest.raises(BaseModelError, match=message):
        obtain(base, tmp_path)
    with pytest.raises(BaseModelError, match=message):
        check_source(base)


def test_tokenizer_of_another_class_is_the_one_that_transformers_builds(base: Base, folder: Path, tmp_path: Path) -> None:
    edit(folder / "tokenizer_config.json", tokenizer_class="BertTokenizer")
    artifact = obtain(base, tmp_path)
    document = json.loads((artifact.path / "tokenizer.json").read_text())
    assert document["model"]["type"] == "WordPiece"
    # BertTokenizer adds [MASK] where the vocabulary lacks it, and the table has no row for it.
    assert "[MASK]" not in [token["content"] for token in document["added_tokens"]]
    warnings = " ".join(read_origin(artifact.path).warnings)
    assert "tokenizer.json differs from what transformers builds with tokenizer_config.json in normalizer" in warnings
    assert "the model has no row for the special tokens [MASK]" in warnings


def test_tokenizer_that_transformers_cannot_load_is_named(base: Base, folder: Path, tmp_path: Path) -> None:
    edit(folder / "tokenizer_config.json", tokenizer_class="BertTokenizer", pad_token=7)
    with pytest.raises(BaseModelError, match=r"tokenizer\.json: transformers .* cannot load this tokenizer .*check tokenizer_class"):
        obtain(base, tmp_path)
