"""Random bases: same seed same bytes, loadable by transformers, light on memory, and worth embedding with."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file

from optbench.artifact.folder import Artifact
from optbench.artifact.manifest import Kind
from optbench.base.entry import Base
from optbench.base.obtain import base_key, obtain_base
from optbench.base.origin import read_origin
from optbench.base.random_tokenizer import write_tokenizer
from optbench.base.random_weights import BLOCK_ITEMS, file_bytes, write_weights
from optbench.errors import BaseModelError, MachineError
from optbench.model.body import Body
from optbench.model.checkpoint import Prompts, describe
from optbench.model.tokenizer import encode_batch, load_tokenizer
from optbench.model.torch_model import build_module

ARCHITECTURES = ["BertModel", "XLMRobertaModel", "RobertaModel", "MPNetModel"]
TEXTS = [
    "red running shoes",
    "waterproof hiking boots for women",
    "usb c charger cable",
    "oak dining table",
    "Bluetooth headphones, noise cancelling",
    "chaussures de course rouge",
    "stainless steel coffee mug 500ml",
    "a",
]


def make_body(architecture: str = "BertModel", **changes: Any) -> Body:
    bert = architecture == "BertModel"
    sizes: dict[str, Any] = {
        "layers": 2,
        "hidden": 64,
        "heads": 4,
        "feed_forward": 128,
        "vocabulary": 9000,
        "positions": 80,
        "type_vocabulary": 2 if bert else 1,
        "layer_norm_epsilon": 1e-12 if bert else 1e-5,
        "pad_id": 0 if bert else 1,
    }
    return Body(architecture=architecture, **{**sizes, **changes})


def make_base(body: Body, **changes: Any) -> Base:
    options: dict[str, Any] = {"source": "hub:acme/large", "revision": "a" * 40, "license": "MIT", "pooling": "mean", "normalize": True}
    return Base(body=body, max_tokens=64, prompts=Prompts(query="query: "), **{**options, **changes})


def obtain_random(base: Base, cache: Path) -> Artifact:
    return obtain_base(base, cache=cache, weights="random")


def embed(folder: Path, texts: list[str]) -> NDArray[np.float32]:
    import torch

    ids, mask = encode_batch(load_tokenizer(folder), texts)
    with torch.inference_mode():
        return np.asarray(build_module(folder)(torch.from_numpy(ids), torch.from_numpy(mask))[1])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transformers_loads_it_with_no_key_missing_or_unexpected(architecture: str, tmp_path: Path) -> None:
    from transformers import AutoModel

    artifact = obtain_random(make_base(make_body(architecture)), tmp_path)
    model, loading = AutoModel.from_pretrained(artifact.path, output_loading_info=True)
    assert type(model).__name__ == architecture
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert not loading["mismatched_keys"]
    stored = load_file(artifact.main_file)
    assert stored.keys() == model.state_dict().keys()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_different_texts_embed_differently(architecture: str, pooling: str, tmp_path: Path) -> None:
    artifact = obtain_random(make_base(make_body(architecture), pooling=pooling), tmp_path)
    vectors = embed(artifact.path, TEXTS)
    cosines = (vectors @ vectors.T)[~np.eye(len(TEXTS), dtype=bool)]
    # Degenerate weights give about 1 everywhere. These two-layer bodies give 0.4 to 0.8 on average.
    assert cosines.mean() < 0.9
    assert cosines.max() < 0.97
    assert cosines.std() > 0.02


def test_tokens_of_a_text_stay_apart_through_many_layers(tmp_path: Path) -> None:
    import torch

    artifact = obtain_random(make_base(make_body("XLMRobertaModel", layers=24)), tmp_path)
    ids, mask = encode_batch(load_tokenizer(artifact.path), TEXTS[1:2])
    with torch.inference_mode():
        tokens = np.asarray(build_module(artifact.path)(torch.from_numpy(ids), torch.from_numpy(mask))[0][0])
    tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
    cosines = (tokens @ tokens.T)[~np.eye(len(tokens), dtype=bool)]
    # Attention with a gain of 1 draws them together to 1.000: CLS and mean pooling would then be the same thing.
    assert cosines.mean() < 0.95


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_auto_tokenizer_agrees_with_the_tokenizer_file(architecture: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    artifact = obtain_random(make_base(make_body(architecture)), tmp_path)
    ids, mask = encode_batch(load_tokenizer(artifact.path), TEXTS)
    tokenizer = AutoTokenizer.from_pretrained(artifact.path)
    rows = tokenizer(TEXTS, padding=True, truncation=True)
    assert np.array_equal(ids, rows["input_ids"])
    assert np.array_equal(mask, rows["attention_mask"])
    assert tokenizer.pad_token_id == describe(artifact.path).body.pad_id
    config = json.loads((artifact.path / "config.json").read_text())
    if architecture != "BertModel":
        assert (config["bos_token_id"], config["eos_token_id"]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_common_shop_words_are_one_or_two_tokens(architecture: str, tmp_path: Path) -> None:
    artifact = obtain_random(make_base(make_body(architecture)), tmp_path)
    tokenizer = load_tokenizer(artifact.path)
    for word in ("shoes", "waterproof", "laptop", "charger", "tables", "wireless", "headphones", "cushions", "Stainless", "lampe"):
        assert len(tokenizer.encode(word, add_special_tokens=False).ids) <= 2, word


@pytest.fixture(scope="module", params=ARCHITECTURES)
def tokenizer_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return obtain_random(make_base(make_body(request.param)), tmp_path_factory.mktemp("tokenizer")).path


def test_any_text_encodes_below_the_vocabulary(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)

    @given(st.text(max_size=60))
    def check(text: str) -> None:
        ids = tokenizer.encode(text).ids
        assert 2 <= len(ids) <= 64
        assert max(ids) < 9000

    check()


def test_unigram_tokenizer_loses_no_character(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(obtain_random(make_base(make_body("XLMRobertaModel")), tmp_path).path)
    assert tokenizer.decode(tokenizer.encode("ärmellose 東京 🙂 schuhe").ids) == "ärmellose 東京 🙂 schuhe"


@pytest.mark.parametrize(("vocabulary", "pad_id"), [(5, 0), (5, 4), (40, 7), (12_000, 11_999)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_small_vocabularies_and_odd_pad_ids_are_filled(architecture: str, vocabulary: int, pad_id: int, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    ids = write_tokenizer(make_body(architecture, vocabulary=vocabulary, pad_id=pad_id), 64, tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert ids["pad"] == pad_id
    assert tokenizer.get_vocab_size() <= vocabulary
    assert max(tokenizer.encode("red running shoes with 東").ids) < vocabulary


def test_vocabulary_without_room_for_special_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="vocabulary 4 with pad_id 0; random weights need a vocabulary of at least 5"):
        obtain_random(make_base(make_body(vocabulary=4)), tmp_path)


def test_same_seed_gives_the_same_artifact_and_another_seed_another(tmp_path: Path) -> None:
    base = make_base(make_body())
    first = obtain_random(base, tmp_path / "one")
    assert obtain_random(base, tmp_path / "two").sha256 == first.sha256
    other = base.model_copy(update={"seed": 1})
    assert base_key(other, "random") != base_key(base, "random")
    assert obtain_random(other, tmp_path / "one").main_file.read_bytes() != first.main_file.read_bytes()
    # The seed belongs to random weights only.
    assert base_key(other) == base_key(base)


def test_bytes_are_what_they_were_when_the_format_was_set(tmp_path: Path) -> None:
    """A change here means other weights under the same key: raise random_weights.FORMAT and write the new values."""
    write_weights(make_body(), 0, tmp_path / "model.safetensors", lambda message, share: None)
    row = load_file(tmp_path / "model.safetensors")["embeddings.word_embeddings.weight"][0, :4]
    golden = [0.05099725350737572, -0.09076648205518723, 0.030353235080838203, -0.11359997093677521]
    assert row.tolist() == pytest.approx(golden, rel=1.2e-7)  # the quantiles' logarithms may round differently elsewhere


def test_thread_count_does_not_change_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = make_body(vocabulary=3 * BLOCK_ITEMS // 64)  # a table of three blocks
    for threads in (1, 3):
        monkeypatch.setattr("optbench.base.random_weights.usable_threads", lambda threads=threads: threads)
        write_weights(body, 5, tmp_path / f"{threads}.safetensors", lambda message, share: None)
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "3.safetensors").read_bytes()
    table = load_file(tmp_path / "1.safetensors")["embeddings.word_embeddings.weight"].reshape(3, -1)
    # The mean and deviation of a million draws: both within 5 standard errors of what was asked.
    assert np.abs(table.mean(axis=1)).max() < 5 * 0.05 / 1000
    assert np.abs(table.std(axis=1) - 0.05).max() < 5 * 0.05 / 1414
    assert np.abs(np.corrcoef(table)[~np.eye(3, dtype=bool)]).max() < 0.005


def test_announced_size_is_the_size_written(tmp_path: Path) -> None:
    for architecture in ARCHITECTURES:
        body = make_body(architecture)
        write_weights(body, 0, tmp_path / architecture, lambda message, share: None)
        assert (tmp_path / architecture).stat().st_size == file_bytes(body)
        head = 64 * 64 + 64
        types = body.type_vocabulary * 64 if architecture == "MPNetModel" else 0
        tensors = load_file(tmp_path / architecture)
        bias = tensors.get("encoder.relative_attention_bias.weight", np.empty(0)).size
        assert sum(tensor.size for tensor in tensors.values()) == body.parameters + head + bias - types


def test_norms_vary_a_little_around_one(tmp_path: Path) -> None:
    artifact = obtain_random(make_base(make_body()), tmp_path)
    tensors = load_file(artifact.main_file)
    norms = np.concatenate([tensor for name, tensor in tensors.items() if name.endswith("LayerNorm.weight")])
    assert 0.7 < norms.min() < norms.max() < 1.3
    assert 0.03 < norms.std() < 0.07


def test_random_base_says_so_everywhere(tmp_path: Path) -> None:
    base = make_base(make_body())
    artifact = obtain_random(base, tmp_path)
    assert artifact.kind is Kind.CHECKPOINT
    assert artifact.weights == artifact.manifest.weights == "random"
    origin = read_origin(artifact.path)
    assert (origin.source, origin.revision, origin.weights) == ("random", None, "random")
    assert "accuracy is meaningless" in origin.warnings[0]
    assert b"accuracy is meaningless" in artifact.main_file.read_bytes()[:400]
    assert describe(artifact.path) == base.description


def test_source_random_needs_no_option(tmp_path: Path) -> None:
    assert obtain_base(make_base(make_body(), source="random", revision=None), cache=tmp_path).weights == "random"


def test_disk_without_room_is_refused_before_writing(tmp_path: Path) -> None:
    body = make_body(vocabulary=10_000_000, hidden=65536, heads=64)  # 2.8 TB
    with pytest.raises(MachineError, match="a body of random weights needs 2776"):
        obtain_random(make_base(body), tmp_path)
    assert not list(tmp_path.glob("staging*"))


def test_memory_does_not_grow_with_the_body(tmp_path: Path) -> None:
    # 200 MB of weights; with two copies, or one, in memory the peak would rise by at least that much.
    code = """
import sys, numpy
from pathlib import Path
from optbench.model.body import Body
from optbench.base.random_weights import write_weights
from optbench.machine.worker import peak_rss_bytes
body = Body.model_validate_json(sys.argv[1])
before = peak_rss_bytes()
write_weights(body, 0, Path(sys.argv[2]), lambda message, share: None)
print(peak_rss_bytes() - before)
"""
    body = make_body("XLMRobertaModel", vocabulary=180_000, hidden=256, feed_forward=1024)
    path = tmp_path / "model.safetensors"
    child = subprocess.run([sys.executable, "-c", code, body.model_dump_json(), str(path)], capture_output=True, text=True, check=True)
    size_bytes = path.stat().st_size
    path.unlink()
    assert size_bytes > 180e6
    # Four threads with 14 MB each, and the tables of quantiles.
    assert int(child.stdout) < 80e6
