"""Loaders: the libraries that can read an exported folder.

In: an artifact. Out: the code that loads it in each library, as its model card shows it; whether that code computes the artifact's own
vectors (`conformance`); and a copy of the folder with a graph in the other format (`second_graph`).

The tuple `LOADERS` is the registry, in the order of the model card.
"""

from optbench.loaders.base import Loader
from optbench.loaders.fastembed import FASTEMBED
from optbench.loaders.onnxruntime import ONNX_RUNTIME
from optbench.loaders.openvino import OPENVINO
from optbench.loaders.optimum_intel import OPTIMUM_INTEL
from optbench.loaders.sentence_transformers import SENTENCE_TRANSFORMERS_ONNX, SENTENCE_TRANSFORMERS_OPENVINO
from optbench.loaders.text_embeddings_inference import TEXT_EMBEDDINGS_INFERENCE

__all__ = ["LOADERS"]

LOADERS: tuple[Loader, ...] = (
    SENTENCE_TRANSFORMERS_OPENVINO,
    SENTENCE_TRANSFORMERS_ONNX,
    OPTIMUM_INTEL,
    ONNX_RUNTIME,
    FASTEMBED,
    OPENVINO,
    TEXT_EMBEDDINGS_INFERENCE,
)
