"""The settings in a checkpoint's small files: where each is read, and which are refused."""

import json
from pathlib import Path

import pytest

from optbench.errors import BaseModelError
from optbench.model.other_kinds import name_by_files, name_other_kind
from optbench.model.settings import Prompts, read_prompts, read_settings, read_stated_length, refuse_other_settings


def write(folder: Path, **documents: object) -> Path:
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize(
    ("documents", "length"),
    [
        ({}, None),
        ({"tokenizer_config": {"model_max_length": 256}}, 256),
        ({"tokenizer_config": {"model_max_length": 1e30}}, int(1e30)),
        ({"tokenizer_config": {"max_len": 64}}, 64),
        ({"tokenizer_config": {"model_max_length": 512}, "sentence_bert_config": {"max_seq_length": 128}}, 128),
        ({"tokenizer_config": {"model_max_length": 512}, "sentence_bert_config": {"max_seq_length": None}}, 512),
        ({"sentence_roberta_config": {"max_seq_length": 100}}, 100),
        # The library goes on to the next name where a file is empty.
        ({"sentence_bert_config": {}, "sentence_xlnet_config": {"max_seq_length": 90}}, 90),
    ],
)
def test_longest_input_is_read_in_the_order_of_sentence_transformers(
    documents: dict[str, object], length: int | None, tmp_path: Path
) -> None:
    assert read_stated_length(write(tmp_path, **documents)) == length


def test_prompts_without_a_text_are_empty(tmp_path: Path) -> None:
    write(tmp_path, config_sentence_transformers={"prompts": {"query": None, "passage": "p: "}})
    assert read_prompts(tmp_path) == Prompts(query="", document="p: ")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "SparseEncoder"}, "model_type is 'SparseEncoder'; optbench takes a SentenceTransformer"),
        ({"default_prompt_name": "clustering"}, "default_prompt_name is 'clustering'; expected one of query, document"),
        ({"truncate_dim": 0}, "truncate_dim is 0; expected a number of components"),
        ({"truncate_dim": True}, "truncate_dim is True; expected a number of components"),
        ({"similarity_fn_name": "maxsim"}, "similarity_fn_name is 'maxsim'; expected cosine, dot, euclidean, manhattan"),
    ],
)
def test_setting_that_the_library_does_not_know_is_refused(settings: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=rf"config_sentence_transformers\.json: {message}"):
        read_settings(write(tmp_path, config_sentence_transformers=settings))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("tokenizer_config", {"truncation_side": "left"}, "truncation_side is 'left'"),
        ("tokenizer_config", {"split_special_tokens": True}, "split_special_tokens is set"),
        ("tokenizer_config", {"fast_tokenizer_files": ["tokenizer.4.0.0.json"]}, "fast_tokenizer_files names another tokenizer"),
        ("sentence_bert_config", {"transformer_task": "fill-mask"}, "transformer_task is 'fill-mask'"),
        ("sentence_bert_config", {"modality_config": {"image": {}}}, "modality_config and module_output_name ask"),
        ("sentence_bert_config", {"processing_kwargs": {"text": {"max_length": 8}}}, "processing_kwargs is set"),
        ("sentence_bert_config", {"query_length": 32}, "query_length is set"),
        ("sentence_bert_config", {"tokenizer_args": {"model_max_length": 8}}, "tokenizer_args passes model_max_length to transformers"),
        ("sentence_distilbert_config", {"config_kwargs": {"is_decoder": True}}, "config_kwargs passes is_decoder"),
    ],
)
def test_setting_that_changes_ids_is_refused(name: str, settings: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=rf"{name}\.json: {message}"):
        refuse_other_settings(write(tmp_path, **{name: settings}))


def test_settings_of_the_library_itself_pass(tmp_path: Path) -> None:
    text = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
    saved = {"transformer_task": "feature-extraction", "modality_config": text, "module_output_name": "token_embeddings"}
    saved |= {"model_args": {"dtype": "float16"}}
    refuse_other_settings(write(tmp_path, sentence_bert_config=saved, tokenizer_config={"truncation_side": "right"}))


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "a PEFT adapter"),
        (["modules.json", "router_config.json", "query_0_Transformer/config.json"], "a Router"),
        (["modules.json", "0_Router/router_config.json"], "a Router"),
        (["modules.json", "0_CLIPModel/config.json"], "a CLIP model"),
        (["modules.json", "0_StaticEmbedding/tokenizer.json"], "a StaticEmbedding"),
        (["modules.json", "1_SpladePooling/config.json"], "a SPLADE model"),
        (["modules.json", "0_Asym/config.json"], "a Router"),
        (["modules.json", "config.json", "1_Pooling/config.json", "2_Dense/config.json"], None),
    ],
)
def test_folder_is_named_by_its_files(names: list[str], what: str | None) -> None:
    found = name_by_files(names)
    assert found is None if what is None else str(found).startswith(what)


@pytest.mark.parametrize(
    ("documents", "what"),
    [
        ({"modules": [{"type": "sentence_transformers.base.modules.router.Router"}]}, "a Router"),
        (
            {"modules": [{"type": "sentence_transformers.models.StaticEmbedding"}]},
            "a StaticEmbedding",
        ),
        ({"config_sentence_transformers": {"model_type": "CrossEncoder"}, "config": {}}, "a CrossEncoder"),
        ({"config": {"architectures": ["BertForSequenceClassification"]}}, "a CrossEncoder"),
        ({"config": {"model_type": "clip"}}, "a CLIP model"),
        ({"config": {"model_type": "bert"}, "modules": [{"type": "sentence_transformers.models.Transformer"}]}, None),
        ({"config": [], "modules": {}}, None),
    ],
)
def test_folder_is_named_by_what_its_files_say(documents: dict[str, object], what: str | None, tmp_path: Path) -> None:
    found = name_other_kind(write(tmp_path, **documents))
    assert found is None if what is None else str(found).startswith(what)
