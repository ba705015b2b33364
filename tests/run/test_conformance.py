"""Bases against their own libraries: each setting that changes ids or vectors is applied or refused, and the check finds what is missed."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optbench.artifact.folder import Artifact
from optbench.base import layout, obtain, tokenizer
from optbench.base.entry import Base
from optbench.encoder import Encoder
from optbench.engines.torch import Torch
from optbench.errors import BaseModelError
from optbench.machine.progress import silent
from optbench.model import checkpoint, settings
from optbench.run import conformance
from optbench.run.conformance import check_conformance

TEXTS = ["red shoe", "Red BOOT, small", "waterproof laptop charger cable desk lamp oak chair " * 12, "x"]


@pytest.fixture
def folder(tmp_path: Path, make_checkpoint: Callable[..., Artifact]) -> Path:
    """A BERT with a tokenizer of BERT's own class, as it lies on a hub."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    path = shutil.copytree(make_checkpoint("BertModel", "mean", prompt="query: ").path, tmp_path / "model")
    (path / "manifest.json").unlink()
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    processor, specials = tokenizer.post_processor, ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    tokenizer = Tokenizer(models.WordPiece(tokenizer.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processor
    tokenizer.add_special_tokens(specials)
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True}))
    return path


def edit(path: Path, **changes: object) -> None:
    document = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**document, **changes}))


def obtain_from(folder: Path, cache: Path) -> Artifact:
    """The base of a recipe that `init` would write."""
    base = Base(source=f"path:{folder}", license="MIT", **checkpoint.describe(folder).model_dump())
    return obtain.obtain_base(base, cache=cache)


def reference_vectors(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return np.stack([model.encode(text) for text in TEXTS])


@dataclass(frozen=True)
class Setting:
    """A setting in a checkpoint's files.

    Attributes:
        change: sets it in a folder.
        miss: switches off what reads, applies or refuses it.
        found: what the check says then.
    """

    name: str
    change: Callable[[Path], object]
    miss: Callable[[pytest.MonkeyPatch], object]
    found: str

    def __str__(self) -> str:
        return self.name


def longest_input_in_the_tokenizers_file(folder: Path) -> None:
    (folder / "sentence_bert_config.json").unlink()
    edit(folder / "tokenizer_config.json", model_max_length=16)


def ignore_length(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(checkpoint, "read_stated_length", lambda folder: None)


def ignore_setting(**kept: Any) -> Callable[[pytest.MonkeyPatch], object]:
    def patch_reading(patch: pytest.MonkeyPatch) -> None:
        for module in (checkpoint, layout):
            patch.setattr(module, "read_settings", lambda folder: settings.read_settings(folder).model_copy(update=kept))

    return patch_reading


def keep_tokenizer(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(layout, "settle_tokenizer", lambda folder, where: [])


def accept(key: str) -> Callable[[pytest.MonkeyPatch], object]:
    return lambda patch: patch.setattr(
        checkpoint, "EXPORTED_VALUES", {name: value for name, value in checkpoint.EXPORTED_VALUES.items() if name != key}
    )


def drop_special_tokens(folder: Path) -> None:
    edit(folder / "tokenizer.json", post_processor=None)


def lower_case_of_the_library(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", do_lower_case=False)
    edit(folder / "sentence_bert_config.json", do_lower_case=True)


def legacy_length(folder: Path) -> None:
    (folder / "sentence_bert_config.json").unlink()
    edit(folder / "sentence_roberta_config.json", max_seq_length=12)


def relative_positions(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    edit(folder / "config.json", position_embedding_type="relative_key")
    weights = load_file(folder / "model.safetensors")
    name = "encoder.layer.0.attention.self.distance_embedding.weight"
    save_file({**weights, name: np.ones((127, 8), np.float32)}, folder / "model.safetensors", {"format": "pt"})


MODEL_SETTINGS = "config_sentence_transformers.json"
APPLIED = [
    Setting("longest input", longest_input_in_the_tokenizers_file, ignore_length, r"tokenizer_config\.json: model_max_length"),
    Setting("longest input, older file", legacy_length, ignore_length, r"sentence_roberta_config\.json: max_seq_length"),
    Setting("truncate_dim", lambda folder: edit(folder / MODEL_SETTINGS, truncate_dim=16), ignore_setting(dimension=None), "truncate_dim"),
    Setting(
        "default_prompt_name",
        lambda folder: edit(folder / MODEL_SETTINGS, default_prompt_name="query"),
        ignore_setting(default_prompt=None),
        "default_prompt_name",
    ),
    Setting(
        "similarity_fn_name",
        lambda folder: edit(folder / MODEL_SETTINGS, similarity_fn_name="dot"),
        ignore_setting(similarity=None),
        "similarity_fn_name",
    ),
    Setting(
        "do_lower_case of the tokenizer",
        lambda folder: edit(folder / "tokenizer_config.json", do_lower_case=False),
        keep_tokenizer,
        r"tokenizer_config\.json.* normalizer \(do_lower_case",
    ),
    Setting("special tokens", drop_special_tokens, keep_tokenizer, r"tokenizer_config\.json.* post_processor"),
    Setting(
        "do_lower_case of sentence-transformers",
        lower_case_of_the_library,
        lambda patch: patch.setattr(tokenizer, "lowercases_first", lambda folder: False),
        r"tokenizer_config\.json.* normalizer \(do_lower_case",
    ),
]
REFUSED = [
    Setting("is_decoder", lambda folder: edit(folder / "config.json", is_decoder=True), accept("is_decoder"), r"config\.json: is_decoder"),
    Setting(
        "position_embedding_type", relative_positions, accept("position_embedding_type"), "distance_embedding.*position_embedding_type"
    ),
]


@pytest.mark.parametrize("setting", APPLIED, ids=str)
def test_setting_gives_the_vectors_of_sentence_transformers(setting: Setting, folder: Path, tmp_path: Path) -> None:
    plain = reference_vectors(folder)
    setting.change(folder)
    expected = reference_vectors(folder)
    artifact = obtain_from(folder, tmp_path / "cache")
    with Encoder(artifact, Torch()) as encoder:
        alone = np.stack([encoder.encode(text) for text in TEXTS])
        batch = encoder.encode(TEXTS)
        similarity = encoder.similarity_fn_name
    # float32 sums in another order.
    np.testing.assert_allclose(alone, expected, atol=1e-5)
    np.testing.assert_allclose(batch, expected, atol=1e-5)
    # The folder that optbench writes says the same to the library as the source does.
    np.testing.assert_allclose(reference_vectors(artifact.path), expected, atol=1e-5)
    assert similarity == ("dot" if setting.name == "similarity_fn_name" else "cosine")
    if setting.name not in ("similarity_fn_name", "special tokens", "do_lower_case of sentence-transformers"):
        assert plain.shape != expected.shape or np.abs(plain - expected).max() > 0.01
    found = check_conformance(artifact, folder, silent)
    assert (found.texts, found.note) == (32, "")
    assert found.cosine_min is not None
    assert found.cosine_min > conformance.COSINE_MIN


@pytest.mark.parametrize("setting", REFUSED, ids=str)
def test_setting_that_is_not_exported_is_refused_by_file_and_key(setting: Setting, folder: Path) -> None:
    setting.change(folder)
    with pytest.raises(BaseModelError, match=rf"config\.json: {setting.name} is .*give another model"):
        checkpoint.describe(folder)


@pytest.mark.parametrize("setting", [*APPLIED, *REFUSED], ids=str)
def test_check_finds_a_setting_that_is_missed(setting: Setting, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting.change(folder)
    setting.miss(monkeypatch)
    artifact = obtain_from(folder, tmp_path / "cache")
    if "of sentence-transformers" in setting.name:
        monkeypatch.undo()  # what reads the library's ids without the library shares that function
    with pytest.raises(BaseModelError, match=setting.found):
        check_conformance(artifact, folder, silent)
