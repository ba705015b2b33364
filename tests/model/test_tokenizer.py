"""The artifact's own tokenizer: padding, truncation, and what is wrong with a broken one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from optbench.artifact.folder import Artifact
from optbench.errors import ArtifactError, BaseModelError
from optbench.model.tokenizer import encode_batch, load_tokenizer


@pytest.fixture
def folder(tmp_path: Path, make_checkpoint: Callable[..., Artifact]) -> Path:
    return shutil.copytree(make_checkpoint("XLMRobertaModel", "cls").path, tmp_path / "checkpoint")


def test_minilm_gives_the_ids_of_bert(minilm_checkpoint: Artifact) -> None:
    ids, mask = encode_batch(load_tokenizer(minilm_checkpoint.path), ["Hello, world!"])
    # bert-base-uncased's vocabulary: [CLS] hello , world ! [SEP].
    assert ids.tolist() == [[101, 7592, 1010, 2088, 999, 102]]
    assert mask.tolist() == [[1] * 6]
    assert ids.dtype == mask.dtype == np.int64


def test_batch_is_padded_on_the_right_to_its_longest_row_with_the_models_pad_id(folder: Path) -> None:
    ids, mask = encode_batch(load_tokenizer(folder), ["red", "red blue shoe", ""])
    assert ids.tolist() == [[0, 4, 2, 1, 1], [0, 4, 5, 6, 2], [0, 2, 1, 1, 1]]
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1] * 5, [1, 1, 0, 0, 0]]


def test_settings_in_the_file_do_not_pad_or_cut_otherwise(folder: Path) -> None:
    # Files in the wild pad to a fixed length, to the left, or cut at 128: the model's own limits hold.
    document = json.loads((folder / "tokenizer.json").read_text())
    document["padding"] = {
        "strategy": {"Fixed": 16},
        "direction": "Left",
        "pad_to_multiple_of": 8,
        "pad_id": 3,
        "pad_type_id": 0,
        "pad_token": "<unk>",
    }
    document["truncation"] = {"direction": "Left", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(document))
    ids, _ = encode_batch(load_tokenizer(folder), ["red blue shoe", "boot"])
    assert ids.tolist() == [[0, 4, 5, 6, 2], [0, 7, 2, 1, 1]]


def test_long_text_is_cut_to_the_models_longest_input_and_keeps_its_end_token(folder: Path) -> None:
    ids, mask = encode_batch(load_tokenizer(folder), ["red " * 500])
    assert ids.shape == mask.shape == (1, 64)
    assert ids[0, [0, -1]].tolist() == [0, 2]


def test_no_texts_give_empty_arrays_of_two_dimensions(folder: Path) -> None:
    ids, mask = encode_batch(load_tokenizer(folder), [])
    assert ids.shape == mask.shape == (0, 0)


def test_missing_tokenizer_is_an_error_that_says_how_to_write_it(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: missing; save the model's fast tokenizer there"):
        load_tokenizer(folder)


@pytest.mark.parametrize("content", ["", "{}", "[1, 2", '{"model": {"type": "Unheard"}}', "\x00" * 100])
def test_broken_tokenizer_is_an_error(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: not a tokenizer: .*download the model again"):
        load_tokenizer(folder)


def test_missing_config_is_an_error(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(BaseModelError, match=r"config\.json: No such file"):
        load_tokenizer(folder)
