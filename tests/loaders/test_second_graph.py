"""A folder with both graphs: what is added, what is refused, and what stays measured."""

from collections.abc import Callable
from pathlib import Path

import pytest

from optbench.artifact.folder import Artifact, open_artifact
from optbench.artifact.manifest import Kind
from optbench.errors import ArtifactError, MachineError
from optbench.loaders.second_graph import extend
from optbench.record.audit import audit, measured_sha256


def test_onnx_graph_gets_its_openvino_form_beside_it(make_artifact: Callable[..., Artifact], tmp_path: Path) -> None:
    source = make_artifact(Kind.ONNX)
    before = source.sha256
    made = extend(source.path, tmp_path / "both")
    assert made.kind is Kind.ONNX
    assert {name for name in made.manifest.files if name not in source.manifest.files} == {
        "openvino/openvino_model.xml",
        "openvino/openvino_model.bin",
    }
    assert audit(made.path).problems == ()
    assert measured_sha256(made.manifest) == before
    assert open_artifact(source.path).sha256 == before


def test_openvino_graph_gets_another_artifacts_onnx_graph(make_artifact: Callable[..., Artifact], tmp_path: Path) -> None:
    source, other = make_artifact(Kind.OPENVINO), make_artifact(Kind.ONNX)
    made = extend(source.path, tmp_path / "both", other=other.path)
    assert made.kind is Kind.OPENVINO
    assert (made.path / "onnx/model.onnx").read_bytes() == (other.path / "onnx/model.onnx").read_bytes()
    assert measured_sha256(made.manifest) == source.sha256


def test_card_says_that_what_was_added_was_not_measured(make_artifact: Callable[..., Artifact], tmp_path: Path) -> None:
    from optbench.artifact.folder import seal

    source = make_artifact(Kind.ONNX)
    staging = tmp_path / "staging"
    for name in source.manifest.files:
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).write_bytes((source.path / name).read_bytes())
    (staging / "README.md").write_text("# card\n")
    with_card = seal(staging, tmp_path / "with-card", Kind.ONNX, "random")
    card = (extend(with_card.path, tmp_path / "both").path / "README.md").read_text()
    assert card.startswith("# card\n")
    assert "`openvino/` is the graph of `onnx/model.onnx`, converted" in card
    assert "The figures above do not apply to it." in card


def test_what_cannot_be_extended_is_refused(make_artifact: Callable[..., Artifact], tmp_path: Path) -> None:
    onnx, openvino = make_artifact(Kind.ONNX).path, make_artifact(Kind.OPENVINO).path
    cases: list[tuple[Path, Path | None, str]] = [
        (make_artifact(Kind.CHECKPOINT).path, None, "is a checkpoint, which has no graph"),
        (openvino, None, "OpenVINO IR cannot be converted to ONNX; name an ONNX artifact of this model with --with"),
        (openvino, openvino, "is openvino; expected onnx"),
        (openvino, make_artifact(Kind.ONNX, "BertModel", "cls").path, r"differs from .* in 1_Pooling/config\.json"),
    ]
    for folder, other, message in cases:
        with pytest.raises(ArtifactError, match=message):
            extend(folder, tmp_path / "both", other=other)
    with pytest.raises(MachineError, match="already exists; choose another folder"):
        extend(onnx, tmp_path)
    extend(onnx, tmp_path / "both")
    with pytest.raises(ArtifactError, match=r"already has openvino/openvino_model\.xml"):
        extend(tmp_path / "both", tmp_path / "more")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both"]
