"""Bases from folders, the checks against the recipe, and the cache."""

import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from safetensors.numpy import load_file, save_file

from optbench.artifact.folder import Artifact, open_artifact
from optbench.artifact.manifest import Kind
from optbench.base.entry import Base
from optbench.base.obtain import base_key, obtain_base
from optbench.base.origin import read_origin
from optbench.errors import BaseModelError, MachineError
from optbench.model.checkpoint import Prompts, describe
from optbench.model.safetensors import read_header


@pytest.fixture
def base(folder: Path) -> Base:
    return recipe_of(folder)


def recipe_of(folder: Path) -> Base:
    return Base(source=f"path:{folder}", license="MIT", **describe(folder).model_dump())


def edit(path: Path, **changes: object) -> None:
    document = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**document, **changes}))


def obtain(base: Base, tmp_path: Path, override: str | None = None) -> Artifact:
    return obtain_base(base, cache=tmp_path / "cache", override=override)


def test_folder_becomes_a_sealed_checkpoint_without_what_is_not_read(base: Base, folder: Path, tmp_path: Path) -> None:
    for name in ("README.md", "pytorch_model.bin", "onnx/model.onnx", "onnx/config.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    artifact = obtain(base, tmp_path)
    assert artifact.kind is Kind.CHECKPOINT
    assert artifact.weights == "real"
    assert set(artifact.manifest.files) == {
        "1_Pooling/config.json",
        "base.json",
        "config.json",
        "config_sentence_transformers.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert artifact.path == tmp_path / "cache" / "artifacts" / base_key(base)
    assert read_origin(artifact.path).source == "path:model"
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_weights_on_the_same_disk_are_linked_and_elsewhere_copied(
    base: Base, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked = obtain_base(base, cache=tmp_path / "linked")
    assert linked.main_file.samefile(folder / "model.safetensors")

    def refuse(source: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    copied = obtain_base(base, cache=tmp_path / "copied")
    assert not copied.main_file.samefile(folder / "model.safetensors")
    assert copied.sha256 == linked.sha256


def test_every_contradiction_is_listed_with_both_words(base: Base, folder: Path, tmp_path: Path) -> None:
    edit(folder / "config_sentence_transformers.json", prompts={"query": "search: "})
    wrong = base.model_copy(
        update={
            "pooling": "cls",
            "normalize": False,
            "prompts": Prompts(query="query: "),
            "max_tokens": 65,
            "body": base.body.model_copy(update={"layers": 3, "vocabulary": 22, "layer_norm_epsilon": 1e-5}),
        }
    )
    with pytest.raises(BaseModelError) as caught:
        obtain(wrong, tmp_path)
    for words in (
        "body.layers: the recipe says 3, config.json says 2 (num_hidden_layers)",
        "body.vocabulary: the recipe says 22, config.json says 21 (vocab_size)",
        "body.layer_norm_epsilon: the recipe says 1e-05, config.json says 1e-12 (layer_norm_eps)",
        "pooling: the recipe says cls, 1_Pooling/config.json says mean",
        "normalize: the recipe says not normalized, modules.json says normalized",
        "prompts.query: the recipe says 'query: ', config_sentence_transformers.json says 'search: '",
        "max_tokens: the recipe says 65, sentence_bert_config.json (max_seq_length) allows 64",
    ):
        assert words in str(caught.value)
    assert not list((tmp_path / "cache").glob("staging*"))


def test_recipe_may_shorten_inputs_and_give_prompts_that_the_checkpoint_lacks(base: Base, folder: Path, tmp_path: Path) -> None:
    edit(folder / "sentence_bert_config.json", kept="yes")
    asked = base.model_copy(update={"max_tokens": 32, "prompts": Prompts(query="query : ")})
    artifact = obtain(asked, tmp_path)
    assert describe(artifact.path) == asked.description
    assert json.loads((artifact.path / "sentence_bert_config.json").read_text())["kept"] == "yes"
    assert describe(folder).max_tokens == 64


def test_folder_without_modules_gets_the_recipes_layout_and_a_warning(base: Base, folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder / "1_Pooling")
    (folder / "modules.json").unlink()
    asked = base.model_copy(update={"pooling": "cls", "normalize": False})
    artifact = obtain(asked, tmp_path)
    assert describe(artifact.path) == asked.description
    assert "cls pooling and no normalization come from the recipe" in read_origin(artifact.path).warnings[0]


def test_pooling_file_without_modules_still_has_its_say(base: Base, folder: Path, tmp_path: Path) -> None:
    (folder / "modules.json").unlink()
    with pytest.raises(BaseModelError, match=r"pooling: the recipe says cls, 1_Pooling/config\.json says mean"):
        obtain(base.model_copy(update={"pooling": "cls"}), tmp_path)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("config_sentence_transformers.json", {"prompts": ["query"]}),
        ("config_sentence_transformers.json", {"prompts": {"query": 3}}),
        ("sentence_bert_config.json", {"max_seq_length": "many"}),
        ("config.json", {"model_type": ["bert"]}),
        ("config.json", {"num_hidden_layers": "two"}),
    ],
)
def test_json_of_another_shape_is_refused(base: Base, folder: Path, tmp_path: Path, name: str, changes: dict[str, object]) -> None:
    edit(folder / name, **changes)
    with pytest.raises(BaseModelError) as caught:
        obtain(base, tmp_path)
    assert str(caught.value).startswith(f"path:{folder}")  # the user's folder, not the staged copy


def test_checkpoint_that_brings_code_is_refused(base: Base, folder: Path, tmp_path: Path) -> None:
    edit(folder / "config.json", auto_map={"AutoModel": "modeling.Evil"})
    with pytest.raises(BaseModelError, match="auto_map asks to run code"):
        obtain(base, tmp_path)


def test_override_runs_a_derivative_of_the_same_body(base: Base, folder: Path, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    shutil.copytree(folder, tuned)
    tensors = load_file(tuned / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, tuned / "model.safetensors", metadata={"format": "pt"})
    artifact = obtain(base, tmp_path, override=f"path:{tuned}")
    assert artifact.main_file.samefile(tuned / "model.safetensors")
    assert read_origin(artifact.path).license == "MIT"
    edit(tuned / "config.json", num_hidden_layers=1)
    with pytest.raises(BaseModelError, match=r"body\.layers: the recipe says 2, config\.json says 1"):
        obtain(base, tmp_path, override=f"path:{tuned}")


def test_override_and_random_weights_exclude_each_other(base: Base, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="exclude each other"):
        obtain_base(base, cache=tmp_path, weights="random", override="path:x")


def test_broken_override_is_refused_with_the_forms(base: Base, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="--base 'nonsense' is not a source; write hub:ORG/NAME"):
        obtain(base, tmp_path, override="nonsense")


def write_shards(folder: Path) -> dict[str, np.ndarray]:
    """Split the folder's weights in two, one half as fp16, as large models come."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for index, (file, part) in enumerate(parts.items()):
        half = {name: tensors[name].astype(np.float16) if index else tensors[name] for name in part}
        save_file(half, folder / file, metadata={"format": "pt"})
        tensors |= half
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tensors


def test_shards_become_one_file(base: Base, folder: Path, tmp_path: Path) -> None:
    tensors = write_shards(folder)
    artifact = obtain(base, tmp_path)
    merged = load_file(artifact.main_file)
    assert merged.keys() == tensors.keys()
    assert all(merged[name].dtype == tensors[name].dtype and np.array_equal(merged[name], tensors[name]) for name in tensors)
    assert not [name for name in artifact.manifest.files if "0000" in name or name.endswith(".index.json")]
    spans = read_header(artifact.main_file)
    assert all(span.offset % {"F32": 4, "F16": 2}[span.dtype] == 0 for span in spans.values())


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "weights.bin"])
def test_index_that_names_a_file_elsewhere_is_refused(base: Base, folder: Path, tmp_path: Path, name: str) -> None:
    write_shards(folder)
    edit(folder / "model.safetensors.index.json", weight_map={"x": name})
    with pytest.raises(BaseModelError, match=r"not a plain \*\.safetensors name; do not use this checkpoint"):
        obtain(base, tmp_path)


def test_missing_shard_is_named(base: Base, folder: Path, tmp_path: Path) -> None:
    write_shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(BaseModelError, match=r"model-00002-of-00002\.safetensors, which is missing"):
        obtain(base, tmp_path)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (slice(-100), "truncated: .* bytes, expected"),
        (slice(40), "truncated: 40 bytes, the header alone takes"),
        (slice(4), "do not start like safetensors"),
    ],
)
def test_truncated_weights_are_named_with_both_sizes(base: Base, folder: Path, tmp_path: Path, keep: slice, message: str) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[keep])
    with pytest.raises(BaseModelError, match=rf"model\.safetensors: .*{message}"):
        obtain(base, tmp_path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[1, 2]", "header is not safetensors"),
        (b"not json", "header is not safetensors"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', "not whole"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', "too long|truncated|not whole"),
        (b"{}", "no tensor|too long"),
    ],
)
def test_header_that_lies_is_refused(base: Base, folder: Path, tmp_path: Path, header: bytes, message: str) -> None:
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    with pytest.raises(BaseModelError, match=message):
        obtain(base, tmp_path)


def test_pickle_only_folder_is_refused_with_the_cure(base: Base, folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match=r"only pytorch_model\.bin, which may be pickle.*safetensors only.*save_pretrained\(DIR\)"):
        obtain(base, tmp_path)


def test_link_out_of_the_folder_is_refused(base: Base, folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key")
    (folder / "inner.txt").symlink_to(secret)
    (folder / "vocab.txt").symlink_to("inner.txt")
    with pytest.raises(BaseModelError, match=r"vocab\.txt: a link to .*secret, outside the folder"):
        obtain(base, tmp_path)


def test_snapshot_of_a_hub_cache_is_taken_with_its_links(base: Base, folder: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "c0ffee", tmp_path / "models--a--b" / "blobs"
    shutil.copytree(folder, snapshot)
    blobs.mkdir()
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).rename(blobs / name)
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    artifact = obtain(base.model_copy(update={"source": f"path:{snapshot}"}), tmp_path)
    assert artifact.main_file.samefile(blobs / "model.safetensors")
    assert open_artifact(artifact.path) == artifact


def test_missing_folder_is_named(base: Base, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="no such folder; give the folder that holds the model"):
        obtain(base, tmp_path, override=f"path:{tmp_path / 'none'}")


def test_key_of_a_folder_follows_its_content_and_not_what_is_not_read(base: Base, folder: Path) -> None:
    key = base_key(base)
    (folder / "README.md").write_text("new")
    assert base_key(base) == key
    edit(folder / "config.json", note="changed")
    assert base_key(base) != key


def test_corrupted_cache_entry_is_made_again_with_a_warning(base: Base, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = obtain(base, tmp_path)
    (first.path / "config.json").write_text("{}")
    with caplog.at_level(logging.WARNING):
        again = obtain(base, tmp_path)
    assert again == first
    assert open_artifact(again.path) == first
    assert "config.json has" in caplog.text
    assert "making the base again" in caplog.text


def test_what_a_killed_run_left_is_cleared(base: Base, tmp_path: Path) -> None:
    left = tmp_path / "cache" / f"staging-base-{base_key(base)[:16]}"
    left.mkdir(parents=True)
    (left / "half.safetensors").write_text("x")
    assert "half.safetensors" not in obtain(base, tmp_path).manifest.files
    assert not left.exists()


def test_key_that_the_caller_knows_is_not_computed_again(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = base_key(base)
    monkeypatch.setattr("optbench.base.obtain.base_key", lambda *_: pytest.fail("every file of the folder is hashed again"))
    assert obtain_base(base, cache=tmp_path / "cache", key=key).path == tmp_path / "cache" / "artifacts" / key


def test_second_run_at_once_waits_for_the_first(base: Base, tmp_path: Path) -> None:
    (tmp_path / "cache" / "locks").mkdir(parents=True)
    other = FileLock(tmp_path / "cache" / "locks" / f"{base_key(base)}.lock", is_singleton=False)
    other.acquire()
    seen = []

    def report(message: str, share: float | None) -> None:
        seen.append(message)
        if message.startswith("waiting"):
            other.release()

    obtain_base(base, cache=tmp_path / "cache", progress=report)
    assert seen[0] == "waiting for another run that is making the same base"


def test_cache_that_cannot_be_written_is_named(base: Base, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(MachineError, match=r"cache.*name another --cache"):
        obtain(base, tmp_path)


def test_full_disk_while_copying_names_the_cure(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(shutil, "copyfile", refuse)
    with pytest.raises(MachineError, match="No space left on device while making path:model; free some space"):
        obtain(base, tmp_path)
    assert not list((tmp_path / "cache").glob("staging*"))
