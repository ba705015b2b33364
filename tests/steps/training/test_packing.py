"""packing: texts behind one another have the vectors that they have alone, in every architecture, pruned or not."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optbench.artifact.folder import Artifact
from optbench.model.checkpoint import Pooling
from optbench.model.tokenizer import encode_batch, load_tokenizer
from optbench.model.torch_model import build_module
from optbench.steps.training.model import build_trainable
from optbench.steps.training.packing import ROW_TOKENS, pack
from tests.model.test_torch_model import TINY_ABSOLUTE, prune, write_mpnet
from tests.steps.training.conftest import draw_texts

PAD = 9


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40))
def test_every_text_stands_whole_in_one_row(lengths: list[int]) -> None:
    rows = [[1000 * text + place for place in range(length)] for text, length in enumerate(lengths, 1)]
    packed = pack(rows, PAD)
    ids, texts, positions = packed["input_ids"], packed["texts"], packed["positions"]
    for text, row in enumerate(rows, 1):
        (own,) = (texts == text).any(1).nonzero()
        assert ids[own][texts[own] == text].tolist() == row
        assert positions[own][texts[own] == text].tolist() == list(range(len(row)))
    assert (ids[texts == 0] == PAD).all()
    assert (texts > 0).sum() == sum(lengths)
    assert ids.shape[1] % ROW_TOKENS == 0
    assert ids.shape[1] - ROW_TOKENS < max(lengths)
    # Of any two rows the second would have gone into the first, had it fit: at most one is not half full.
    assert sum((row > 0).sum() <= ids.shape[1] / 2 for row in texts) <= 1


@pytest.mark.parametrize("architecture", ["BertModel", "XLMRobertaModel", "MPNetModel"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("pruned", [False, True])
def test_vectors_are_those_of_each_text_alone(
    make_checkpoint: Callable[..., Artifact], tmp_path: Path, architecture: str, pooling: Pooling, pruned: bool
) -> None:
    if architecture == "MPNetModel":
        folder = tmp_path / "mpnet"
        write_mpnet(folder, pooling)
        shutil.copyfile(make_checkpoint("XLMRobertaModel").path / "tokenizer.json", folder / "tokenizer.json")
    else:
        folder = make_checkpoint(architecture, pooling).path
    if pruned:
        prune(folder, tmp_path / "pruned")
        folder = tmp_path / "pruned"
    texts = [*draw_texts(60), "red " * 50]
    alone, packed = build_module(folder), build_trainable(folder, packed=True).eval()
    features = packed.preprocess(texts)
    assert 1 < len(features["input_ids"]) < len(texts) / 5
    with torch.inference_mode():
        wanted = alone(*map(torch.from_numpy, encode_batch(load_tokenizer(folder), texts)))[1]
        found = torch.nn.functional.normalize(packed(features)["sentence_embedding"], dim=1)
    torch.testing.assert_close(found, wanted, atol=TINY_ABSOLUTE, rtol=0)
