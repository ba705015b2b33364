"""OpenVINO alone, on the IR or on the ONNX file: the graph pools and normalizes.

Source: https://docs.openvino.ai, compile_model.
"""

from optbench.artifact.manifest import Kind
from optbench.loaders.base import ExportedModel, PythonLoader, Query, load_tokenizer, tokenize

__all__ = ["OPENVINO"]


def _load(model: ExportedModel) -> list[str]:
    graph = f"{model.folder}/{model.kind.main_file}"
    options = {"PERFORMANCE_HINT": "LATENCY", **model.openvino_options}
    return [
        "import numpy as np",
        "import openvino",
        "from tokenizers import Tokenizer",
        "",
        *load_tokenizer(model),
        f'model = openvino.Core().compile_model({graph!r}, "CPU", {options!r})',
    ]


def _embed(_model: ExportedModel, query: Query) -> list[str]:
    return [*tokenize(query), 'vectors = model(inputs)["sentence_embedding"]']


OPENVINO = PythonLoader(
    name="openvino",
    title="OpenVINO",
    distribution="openvino",
    packages=("openvino", "tokenizers"),
    reads=(Kind.OPENVINO, Kind.ONNX),
    on_card=(Kind.OPENVINO, Kind.ONNX),
    runtime="openvino",
    load=_load,
    embed=_embed,
)
