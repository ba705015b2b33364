"""Checks that a graph file needs nothing but its own folder and the engine's own operators.

ONNX may name a data file anywhere on the disk, and operators of a custom library; OpenVINO IR may name an extension. Engines differ in
what they refuse, so it is checked here, before any of them opens the file.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

__all__ = ["onnx_problems", "openvino_problems"]

# protobuf reads no message of 2 GiB or more.
ONNX_BYTES_MAX = 2**31 - 1
# The IR of a 24-layer body has 1.5 MB.
XML_BYTES_MAX = 64 * 1024 * 1024
# The standard's, and those built into ONNX Runtime.
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
PROBLEMS_MAX = 20


def onnx_problems(path: Path) -> list[str]:
    """What an ONNX file needs that it must not, at most 20 sentences; loads the graph without its external weights.

    External data may only lie in the graph's own folder.
    """
    import onnx
    from google.protobuf.message import DecodeError

    size_bytes = path.stat().st_size
    if size_bytes > ONNX_BYTES_MAX:
        return [f"{path.name} has {size_bytes} bytes; a protobuf file has at most {ONNX_BYTES_MAX}"]
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError:
        return [f"{path.name} is not ONNX"]
    if not model.graph.node:
        return [f"{path.name} holds no graph"]
    known = {(function.domain, function.name) for function in model.functions}
    problems = dict.fromkeys(
        f"operator {ascii(node.domain)[:80]}::{ascii(node.op_type)[1:-1][:80]} needs a custom-operator library"
        for node in _nodes(model)
        if node.domain not in DOMAINS and (node.domain, node.op_type) not in known
    )
    problems |= dict.fromkeys(problem for tensor in _tensors(model) if (problem := _data_problem(tensor, path.parent)))
    return list(problems)[:PROBLEMS_MAX]


def _nodes(model: "ModelProto") -> "Iterator[NodeProto]":
    """Every node: of the graph, of subgraphs, and of functions."""
    pending = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    for training in model.training_info:
        pending += [*training.initialization.node, *training.algorithm.node]
    while pending:
        node = pending.pop()
        yield node
        for attribute in node.attribute:
            pending += [inner for graph in (attribute.g, *attribute.graphs) for inner in graph.node]


def _tensors(model: "ModelProto") -> "Iterator[TensorProto]":
    """Every tensor in the file: each may name a data file."""
    graphs = [model.graph, *(graph for training in model.training_info for graph in (training.initialization, training.algorithm))]
    for node in _nodes(model):
        for attribute in node.attribute:
            graphs += (attribute.g, *attribute.graphs)
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
    for graph in graphs:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)


def _data_problem(tensor: "TensorProto", folder: Path) -> str | None:
    """What is wrong with the place of a tensor's data, if anything."""
    if not tensor.external_data and tensor.data_location != tensor.EXTERNAL:
        return None
    fields = {entry.key: entry.value for entry in tensor.external_data}
    location = fields.get("location", "")
    shown = f"tensor {ascii(tensor.name)[:80]} keeps its data in {ascii(location)[:80]}"
    # A plain name: the graph's folder has no subfolders.
    if not location or PurePosixPath(location).name != location or "\\" in location or location == "..":
        return f"{shown}, which is not a file in its folder"
    path = folder / location
    if path.is_symlink() or not path.is_file():
        return f"{shown}, which is missing or a link"
    try:
        offset, length = int(fields.get("offset", "0")), int(fields.get("length", "0"))
    except ValueError:
        return f"{shown}, at an offset or length that is not a number"
    if offset < 0 or length < 0 or offset + length > path.stat().st_size:
        return f"{shown}, before the start or past the end of that file"
    return None


def openvino_problems(path: Path) -> list[str]:
    """What an OpenVINO IR (its .xml file) needs that it must not, at most 20 sentences."""
    from xml.etree import ElementTree

    size_bytes = path.stat().st_size
    if size_bytes > XML_BYTES_MAX:
        return [f"{path.name} has {size_bytes} bytes; an IR has at most {XML_BYTES_MAX}"]
    content = path.read_bytes()
    # Nested entities expand exponentially, and no IR has any.
    if b"<!" in content.replace(b"<!--", b""):
        return [f"{path.name} declares a document type or an entity"]
    try:
        root = ElementTree.fromstring(content)  # noqa: S314  # bounded in size, and without a document type
    except ElementTree.ParseError as error:
        return [f"{path.name} is not XML: {error}"]
    problems = dict.fromkeys(
        f"layer {ascii(layer.get('name'))[:80]} of type {ascii(layer.get('type'))[:80]} needs an extension library"
        for layer in root.iter("layer")
        if not layer.get("version", "").startswith("opset")
    )
    return list(problems)[:PROBLEMS_MAX]
