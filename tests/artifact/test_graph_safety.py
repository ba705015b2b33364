"""Graphs that ask for files outside their folder, or for libraries that no engine brings, are found before an engine opens them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from optbench.artifact import graph_safety as graph_trust
from optbench.artifact.folder import Artifact
from optbench.artifact.graph_safety import onnx_problems, openvino_problems
from optbench.artifact.manifest import Kind


def write_graph(folder: Path, location: str, *, where: str = "initializer", length: str = "8", domain: str = "") -> Path:
    """A graph with one tensor outside the file, in each place where ONNX allows one."""
    (folder / "onnx").mkdir()
    (folder / "onnx" / "weights").write_bytes(bytes(8))
    (folder / "secret").write_bytes(bytes(8))
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": "0", "length": length}.items():
        tensor.external_data.add(key=key, value=value)
    nodes = [helper.make_node("Identity", ["x"], ["y"], domain=domain)]
    initializers = [tensor] if where == "initializer" else []
    if where == "attribute":
        nodes.append(helper.make_node("Constant", [], ["c"], value=tensor))
    inner = helper.make_graph([helper.make_node("Constant", [], ["k"], value=tensor)], "inner", [], [])
    if where == "subgraph":
        nodes.append(helper.make_node("If", ["x"], ["z"], then_branch=inner, else_branch=inner))
    model = helper.make_model(helper.make_graph(nodes, "g", [], [], initializers))
    if where == "function":
        constant = helper.make_node("Constant", [], ["k"], value=tensor)
        model.functions.append(helper.make_function("own", "F", [], ["k"], [constant], [helper.make_opsetid("", 20)]))
    path = folder / "onnx" / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("where", ["initializer", "attribute", "subgraph", "function"])
@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "..", "sub/weights", "..\\secret", ""])
def test_data_outside_the_graphs_folder_is_found_wherever_it_is_named(tmp_path: Path, where: str, location: str) -> None:
    problems = onnx_problems(write_graph(tmp_path, location, where=where))
    assert len(problems) == 1
    assert "which is not a file in its folder" in problems[0]


@pytest.mark.parametrize("where", ["initializer", "attribute", "subgraph", "function"])
def test_data_in_the_graphs_folder_is_no_problem(tmp_path: Path, where: str) -> None:
    assert onnx_problems(write_graph(tmp_path, "weights", where=where)) == []


def test_data_behind_a_link_is_found(tmp_path: Path) -> None:
    path = write_graph(tmp_path, "link")
    (tmp_path / "onnx" / "link").symlink_to(tmp_path / "secret")
    assert "which is missing or a link" in onnx_problems(path)[0]


@pytest.mark.parametrize(("length", "message"), [("9", "past the end of that file"), ("-1", "before the start"), ("many", "not a number")])
def test_data_at_bytes_that_are_not_there_is_found(tmp_path: Path, length: str, message: str) -> None:
    assert message in onnx_problems(write_graph(tmp_path, "weights", length=length))[0]


def test_operator_of_a_foreign_library_is_found(tmp_path: Path) -> None:
    problems = onnx_problems(write_graph(tmp_path, "weights", domain="evil\x1b[2J"))
    assert problems == [r"operator 'evil\x1b[2J'::Identity needs a custom-operator library"]


@pytest.mark.parametrize("kind", [Kind.ONNX, Kind.OPENVINO])
def test_exported_graph_has_no_problem(make_artifact: Callable[..., Artifact], kind: Kind) -> None:
    check = onnx_problems if kind is Kind.ONNX else openvino_problems
    assert check(make_artifact(kind).main_file) == []


@pytest.mark.parametrize(("content", "message"), [(b"\xff\xff", "is not ONNX"), (b"", "holds no graph")])
def test_broken_graph_is_said(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    assert message in onnx_problems(tmp_path / "model.onnx")[0]


def test_graph_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, bound, check in (("model.onnx", "ONNX_BYTES_MAX", onnx_problems), ("model.xml", "XML_BYTES_MAX", openvino_problems)):
        (tmp_path / name).write_bytes(b"x" * 11)
        monkeypatch.setattr(graph_trust, bound, 10)
        monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
        assert "has at most 10" in check(tmp_path / name)[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('<!DOCTYPE x [<!ENTITY a "aaaa">]><net>&a;</net>', "declares a document type or an entity"),
        ("<net><layers><layer name='m' type='Evil' version='extension'/></layers></net>", "layer 'm' of type 'Evil' needs an extension"),
        ("<net>", "is not XML"),
    ],
)
def test_openvino_ir_that_asks_for_more_is_found(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "model.xml").write_text(content)
    assert message in openvino_problems(tmp_path / "model.xml")[0]
