"""Loaders of this Python on tiny models; the pinned environments are proven by bench/loaders.py."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from optbench import cli
from optbench.artifact.folder import Artifact, seal
from optbench.artifact.manifest import MANIFEST, Kind
from optbench.engines.choice import ENGINE_FILE
from optbench.engines.openvino import OpenVino, _StaticRequest
from optbench.errors import ArtifactError, MachineError
from optbench.loaders import LOADERS, conformance
from optbench.loaders.conformance import COSINE_MIN, LoaderRow, Status, check_loaders, loader_names, loader_texts
from optbench.loaders.environments import PinnedEnvironment
from optbench.loaders.second_graph import extend
from optbench.loaders.text_embeddings_inference import TEXT_EMBEDDINGS_INFERENCE
from optbench.machine import extras
from optbench.model.checkpoint import describe
from optbench.report.loaders import loader_table
from tests.cli.test_json import check_keys

HERE = ("onnxruntime", "openvino", "fastembed")
TEXTS = ["red running shoe", "small oak desk", "wireless mouse for a laptop"]


def silent(_message: str, _share: float | None) -> None:
    """Progress that nobody watches."""


def check(folder: Path, names: tuple[str, ...]) -> dict[str, LoaderRow]:
    return {row.loader: row for row in check_loaders(folder, names, TEXTS, folder / "none", silent)}


@pytest.fixture(scope="module")
def both(make_artifact: Callable[..., Artifact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a query prompt, its graph in both formats."""
    pytest.importorskip("fastembed", reason="fastembed is missing: pip install 'optbench[loaders]'")
    folder = tmp_path_factory.mktemp("loaders")
    shutil.copytree(make_artifact(Kind.ONNX, "BertModel", "mean", prompt="large ").path, folder / "staging")
    (folder / "staging" / "tokenizer_config.json").write_text('{"model_max_length": 64, "pad_token": "[PAD]"}')
    (folder / "staging" / MANIFEST).unlink()
    return extend(seal(folder / "staging", folder / "one", Kind.ONNX, "random").path, folder / "both").path


def edited(source: Path, folder: Path, name: str, change: Callable[[dict[str, object]], None]) -> Path:
    """A sealed copy with another JSON file."""
    shutil.copytree(source, folder / "staging")
    document = json.loads((folder / "staging" / name).read_text())
    change(document)
    (folder / "staging" / name).write_text(json.dumps(document))
    (folder / "staging" / MANIFEST).unlink()
    return seal(folder / "staging", folder / "edited", Kind.ONNX, "random").path


def test_every_loader_of_this_python_gives_our_own_vectors_from_one_folder(both: Path) -> None:
    rows = check(both, (*HERE, "text-embeddings-inference"))
    assert {name: row.status for name, row in rows.items()} == dict.fromkeys((*HERE, "text-embeddings-inference"), Status.OK)
    for name in HERE:
        row = rows[name]
        assert row.cosine is not None
        assert row.prompted is not None
        assert min(row.cosine, row.prompted) >= COSINE_MIN
        assert row.normalized
        assert row.version
    assert rows["openvino"].graph == "openvino/openvino_model.xml"


def test_loader_that_pools_otherwise_than_the_graph_differs(both: Path, tmp_path: Path) -> None:
    def to_cls(config: dict[str, object]) -> None:
        config.update(pooling_mode_mean_tokens=False, pooling_mode_cls_token=True)

    rows = check(edited(both, tmp_path, "1_Pooling/config.json", to_cls), ("onnxruntime", "fastembed"))
    assert rows["onnxruntime"].status is Status.OK  # the graph pools
    assert rows["fastembed"].status is Status.DIFFERS
    assert rows["fastembed"].note == "its vectors differ from the artifact's: other pooling or precision"


def test_static_lengths_are_compared_with_the_graph_of_any_shape(
    make_artifact: Callable[..., Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(make_artifact(Kind.OPENVINO).path, tmp_path / "staging")
    (tmp_path / "staging" / ENGINE_FILE).write_text('{"engine": "openvino", "static_lengths": [8, 16]}')
    (tmp_path / "staging" / MANIFEST).unlink()
    folder = seal(tmp_path / "staging", tmp_path / "static", Kind.OPENVINO, "random").path
    rows = check(folder, ("openvino",))
    assert {name: row.status for name, row in rows.items()} == {"optbench": Status.OK, "openvino": Status.OK}

    def move(session: _StaticRequest, ids: object, mask: object) -> NDArray[np.float32]:
        return honest(session, ids, mask)[:, ::-1]  # type: ignore[arg-type]

    honest = _StaticRequest.__call__
    monkeypatch.setattr(_StaticRequest, "__call__", move)
    rows = check(folder, ("openvino",))
    assert {name: row.status for name, row in rows.items()} == {"optbench": Status.DIFFERS, "openvino": Status.OK}


def test_note_tells_rounding_from_another_pooling(make_artifact: Callable[..., Artifact]) -> None:
    model = conformance._exported_model(make_artifact(Kind.OPENVINO), OpenVino())
    one = np.array([[1.0, 0.0]], dtype=np.float32)
    facts = {"version": "1", "load_ns": 1, "embed_ns": [1]}
    for cosine, word in ((0.9997, "rounds otherwise"), (0.9, "pooling")):
        other = np.array([[cosine, math.sqrt(1 - cosine**2)]], dtype=np.float32)
        row = conformance._row("x", model, {"plain": other, "prompted": other}, {"plain": one, "prompted": one}, facts)
        assert row.status is Status.DIFFERS
        assert word in row.note


def test_loader_that_drops_the_prompt_differs(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_prompt(folder: Path) -> object:
        found = describe(folder)
        return found.model_copy(update={"prompts": found.prompts.model_copy(update={"query": ""})})

    monkeypatch.setattr("optbench.loaders.conformance.describe", without_prompt)
    row = check(both, ("onnxruntime",))["onnxruntime"]
    assert row.status is Status.DIFFERS
    assert "with the query prompt" in row.note


def test_loader_that_fails_says_its_last_words(both: Path, tmp_path: Path) -> None:
    shutil.copytree(both, tmp_path / "copy")
    (tmp_path / "copy" / "onnx" / "model.onnx").write_bytes(b"\x08\x0a")
    (tmp_path / "copy" / MANIFEST).unlink()
    broken = seal(tmp_path / "copy", tmp_path / "broken", Kind.ONNX, "random").path
    row = check(broken, ("onnxruntime",))["onnxruntime"]
    assert row.status is Status.FAILS
    assert row.note


def test_folder_without_the_loaders_graph_says_which_file_it_needs(make_artifact: Callable[..., Artifact], tmp_path: Path) -> None:
    rows = check(make_artifact(Kind.OPENVINO).path, ("fastembed", "text-embeddings-inference", "openvino"))
    assert rows["fastembed"].status is rows["text-embeddings-inference"].status is Status.NEEDS_FILE
    assert "reads onnx/model.onnx; optbench extend" in rows["fastembed"].note
    assert rows["openvino"].status is Status.OK
    shutil.copytree(make_artifact(Kind.ONNX).path, tmp_path / "staging")
    for name in (MANIFEST, "tokenizer_config.json"):
        (tmp_path / "staging" / name).unlink()
    without = check(seal(tmp_path / "staging", tmp_path / "sealed", Kind.ONNX, "random").path, ("fastembed",))["fastembed"]
    assert without.status is Status.NEEDS_FILE
    assert without.note.startswith("reads tokenizer_config.json")


def test_loader_that_is_not_installed_says_what_to_install(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda _name: None)
    row = check(both, ("fastembed",))["fastembed"]
    assert row.status is Status.CANNOT_RUN
    assert row.note.endswith("not installed; run pip install 'optbench[loaders]'")


def test_environment_that_cannot_be_made_says_why(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(environment: PinnedEnvironment, *_: object) -> Path:
        raise MachineError(f"the environment {environment.name} cannot be installed: no network")

    monkeypatch.setattr(conformance, "make_environment", no_network)
    rows = check(both, ("sentence-transformers-openvino", "sentence-transformers-onnx", "optimum-intel"))
    assert {row.status for row in rows.values()} == {Status.CANNOT_RUN}
    assert rows["optimum-intel"].note == "the environment st6-openvino cannot be installed: no network"


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("config.json", lambda config: config.pop("num_hidden_layers"), "num_hidden_layers"),
        (
            "1_Pooling/config.json",
            lambda config: config.update(pooling_mode_max_tokens=True),
            "expected exactly one of cls, mean and last token",
        ),
    ],
)
def test_rules_of_the_inference_server_are_checked(
    both: Path, tmp_path: Path, name: str, change: Callable[[dict[str, object]], None], problem: str
) -> None:
    assert TEXT_EMBEDDINGS_INFERENCE.problems(both) == []
    found = TEXT_EMBEDDINGS_INFERENCE.problems(edited(both, tmp_path, name, change))
    assert len(found) == 1
    assert problem in found[0]


def test_graph_that_the_inference_server_cannot_feed_is_found(both: Path, tmp_path: Path) -> None:
    import onnx

    shutil.copytree(both, tmp_path / "copy")
    path = tmp_path / "copy" / "onnx" / "model.onnx"
    model = onnx.load(path)
    model.graph.input[0].name = "tokens"
    model.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.INT32
    for value in model.graph.output:
        value.name += "_of_another_name"
    path.write_bytes(model.SerializeToString())
    found = TEXT_EMBEDDINGS_INFERENCE.problems(tmp_path / "copy")
    assert found[0] == "the graph does not take input_ids"
    assert "the graph takes tokens, which the server does not give" in found
    assert any("is not int64" in problem for problem in found)
    assert any("gives none of sentence_embedding" in problem for problem in found)


def test_names_are_all_or_some() -> None:
    assert loader_names("all") == tuple(loader.name for loader in LOADERS)
    assert loader_names("openvino, fastembed") == ("openvino", "fastembed")
    with pytest.raises(ArtifactError, match="no loader nonsense; expected all, or names of sentence-transformers-openvino"):
        loader_names("openvino,nonsense")


def test_texts_are_real_and_short() -> None:
    texts = loader_texts()
    assert len(texts) == len(set(texts)) >= 12
    assert max(map(len, texts)) < 400


def test_no_rows_are_no_table() -> None:
    assert loader_table(()) is None


def test_verify_shows_loaders_and_exits_by_them(both: Path, make_artifact: Callable[..., Artifact]) -> None:
    done = CliRunner().invoke(cli.app, ["verify", str(both), "--loaders", "onnxruntime,text-embeddings-inference", "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    check_keys("verify", document)
    assert [row["status"] for row in document["loaders"]] == ["ok", "ok"]
    shown = CliRunner().invoke(cli.app, ["verify", str(both), "--loaders", "text-embeddings-inference"])
    assert "its rules for files" in " ".join(shown.stdout.split())
