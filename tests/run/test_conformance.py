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
from optbench.base.conformance_texts import conformance_texts
from optbench.base.entry import Base
from optbench.encoder import Encoder
from optbench.engines.torch import Torch
from optbench.errors import BaseModelError, StepError
from optbench.machine.progress import silent
from optbench.model import checkpoint, settings
from optbench.run import conformance
from optbench.run.cache import Cache
from optbench.run.conformance import check_conformance, check_exported_ids, read_conformance

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


def test_result_is_kept_for_the_same_bytes_and_libraries(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path / "cache")
    base = Base(source=f"path:{folder}", license="MIT", **checkpoint.describe(folder).model_dump())
    artifact = obtain.obtain_base(base, cache=cache.root)
    first = read_conformance(artifact, base, cache)
    assert first is not None
    assert first.summary.startswith("32 texts: ids and vectors of sentence-transformers 6.2")
    monkeypatch.setattr(conformance, "check_conformance", lambda *_: pytest.fail("compared again"))
    assert read_conformance(artifact, base, cache) == first


def test_ids_are_compared_where_sentence_transformers_is_not_installed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = obtain_from(folder, tmp_path / "cache")
    monkeypatch.setattr(conformance, "find_spec", lambda name: None)
    found = check_conformance(artifact, folder, silent)
    assert found.vectors_of is None
    assert "vectors not compared: sentence-transformers is not installed" in found.summary
    edit(folder / "tokenizer_config.json", do_lower_case=False)
    with pytest.raises(BaseModelError, match="normalizer"):
        check_conformance(artifact, folder, silent)


def test_weights_that_differ_are_named(folder: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    artifact = obtain_from(folder, tmp_path / "cache")
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.1.output.dense.weight"] = weights["encoder.layer.1.output.dense.weight"][::-1].copy()
    (folder / "model.safetensors").unlink()  # it is linked into the cache
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BaseModelError, match=r"config\.json or model\.safetensors .*cosine -?0\.\d+ to sentence-transformers'"):
        check_conformance(artifact, folder, silent)


def test_pooling_that_differs_is_named(folder: Path, tmp_path: Path) -> None:
    artifact = obtain_from(folder, tmp_path / "cache")
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"embedding_dimension": 32, "pooling_mode": "cls"}))
    with pytest.raises(BaseModelError, match=r"modules\.json, 1_Pooling/config\.json"):
        check_conformance(artifact, folder, silent)


def test_folder_without_modules_json_is_compared_as_the_recipe_completes_it(folder: Path, tmp_path: Path) -> None:
    base = Base(source=f"path:{folder}", license="MIT", **checkpoint.describe(folder).model_dump())
    (folder / "modules.json").unlink()
    found = check_conformance(obtain.obtain_base(base, cache=tmp_path / "cache"), folder, silent)
    assert found.vectors_of is not None


def test_ids_of_an_artifact_are_those_of_its_other_loaders(folder: Path, tmp_path: Path) -> None:
    path = shutil.copytree(obtain_from(folder, tmp_path / "cache").path, tmp_path / "artifact")
    assert check_exported_ids(path).startswith("32 texts: ids of transformers")
    edit(path / "tokenizer_config.json", do_lower_case=False)
    with pytest.raises(StepError, match=r"its tokenizer gives .*normalizer"):
        check_exported_ids(path)


def test_texts_hold_what_tokenizers_stumble_over() -> None:
    from tokenizers import Tokenizer, models

    texts = conformance_texts(Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]")), max_tokens=64)
    assert len(texts) == len(set(texts)) == 32
    assert texts[0] == ""
    assert any("\x00" in text for text in texts)
    assert any("\u200d" in text for text in texts)
    assert len(texts[-1].split()) == 3 * 64
