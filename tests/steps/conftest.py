"""The real model in each kind of artifact, graphs written by hand, and texts to calibrate on."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from optbench.artifact.folder import Artifact, seal
from optbench.artifact.manifest import Kind
from optbench.steps.convert_openvino import ConvertOpenvino
from optbench.steps.export_onnx import ExportOnnx
from tests.conftest import MakeOnce, filled_by

TINY_TEXTS = [
    "red shoe",
    "waterproof running boot",
    "oak desk lamp small",
    "blue wireless mouse",
    "large laptop charger cable red",
    "chair",
    "small oak chair blue lamp large desk",
    "wireless charger",
]


@pytest.fixture
def tiny_texts() -> list[str]:
    """Texts in the words that the tiny models know."""
    return TINY_TEXTS


@pytest.fixture
def shop_texts() -> list[str]:
    """Titles and queries of a shop, for the real model."""
    things = ["running shoes", "oak desk", "wireless mouse", "coffee grinder", "rain jacket", "usb-c charger", "table lamp", "yoga mat"]
    traits = ["for women", "black, size 42", "with two year warranty", "12 V", "cheap", "made of recycled plastic, set of 3"]
    return [f"{thing} {trait}" for thing in things for trait in traits] + things


@pytest.fixture(scope="session")
def minilm(make_once: MakeOnce, minilm_checkpoint: Artifact) -> Callable[[Kind], Artifact]:
    """all-MiniLM-L6-v2 as `minilm(Kind.ONNX)` or `minilm(Kind.OPENVINO)`; made once a session."""

    def make(kind: Kind) -> Artifact:
        if kind is Kind.CHECKPOINT:
            return minilm_checkpoint
        step = ExportOnnx() if kind is Kind.ONNX else ConvertOpenvino()
        source = make(Kind.CHECKPOINT if kind is Kind.ONNX else Kind.ONNX)
        return make_once((kind, "minilm"), kind, "real", filled_by(step, source))

    return make


@pytest.fixture
def make_onnx(tmp_path: Path) -> Callable[..., Artifact]:
    """A factory of sealed artifacts from ONNX's text form: `make_onnx("float[n,4] x", "float[n,2] y", "y = MatMul(x, w)", {"w": w})`."""

    def make(inputs: str, outputs: str, body: str, weights: Mapping[str, NDArray[Any]]) -> Artifact:
        import onnx
        from onnx import numpy_helper, parser

        header = '<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>'
        model = parser.parse_model(f"{header} agraph ({inputs}) => ({outputs}) {{ {body} }}")
        model.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items())
        for node in model.graph.node:
            node.name = f"/{node.output[0]}"
        staging = tmp_path / "by_hand"
        (staging / "onnx").mkdir(parents=True)
        onnx.save(model, staging / Kind.ONNX.main_file)
        return seal(staging, tmp_path / "by_hand_sealed", Kind.ONNX, "random")

    return make
