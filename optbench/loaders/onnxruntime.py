"""ONNX Runtime alone: the graph pools and normalizes.

Source: https://onnxruntime.ai/docs/api/python.
"""

from optbench.artifact.manifest import Kind
from optbench.loaders.base import ExportedModel, PythonLoader, Query, load_tokenizer, tokenize

__all__ = ["ONNX_RUNTIME"]


def _load(model: ExportedModel) -> list[str]:
    graph = f"{model.folder}/{model.kind.main_file}"
    return [
        "import numpy as np",
        "import onnxruntime",
        "from tokenizers import Tokenizer",
        "",
        *load_tokenizer(model),
        f'session = onnxruntime.InferenceSession({graph!r}, providers=["CPUExecutionProvider"])',
    ]


def _embed(_model: ExportedModel, query: Query) -> list[str]:
    return [*tokenize(query), '(vectors,) = session.run(["sentence_embedding"], inputs)']


ONNX_RUNTIME = PythonLoader(
    name="onnxruntime",
    title="ONNX Runtime",
    distribution="onnxruntime",
    packages=("onnxruntime", "tokenizers"),
    reads=(Kind.ONNX,),
    on_card=(Kind.ONNX,),
    runtime="onnxruntime",
    load=_load,
    embed=_embed,
)
