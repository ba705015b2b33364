"""Steps: each turns one artifact into another, and is itself an entry of a recipe.

In: a sealed artifact, and the inputs that the step declares (`BaseStep.inputs`). Out: the files of a new artifact and a `StepReport`:
what was matched, what was refused and why. The union `Step` is the registry: a new step is its file, a line there and its test.
"""

from typing import Annotated

from pydantic import Field

from optbench.steps.base import BaseStep, StepContext, StepReport
from optbench.steps.compress_tables import CompressTables
from optbench.steps.compress_weights import CompressWeights
from optbench.steps.convert_openvino import ConvertOpenvino
from optbench.steps.distill import Distill
from optbench.steps.export_onnx import ExportOnnx
from optbench.steps.finetune import Finetune
from optbench.steps.fuse_graph import FuseGraph
from optbench.steps.prune_structured import PruneStructured
from optbench.steps.quantize_dynamic import QuantizeDynamic
from optbench.steps.quantize_static import QuantizeStatic
from optbench.steps.quantize_static_qdq import QuantizeStaticQdq
from optbench.steps.trim_vocabulary import TrimVocabulary

__all__ = [
    "BaseStep",
    "CompressTables",
    "CompressWeights",
    "ConvertOpenvino",
    "Distill",
    "ExportOnnx",
    "Finetune",
    "FuseGraph",
    "PruneStructured",
    "QuantizeDynamic",
    "QuantizeStatic",
    "QuantizeStaticQdq",
    "Step",
    "StepContext",
    "StepReport",
    "TrimVocabulary",
]

Step = Annotated[
    PruneStructured
    | Distill
    | Finetune
    | TrimVocabulary
    | ExportOnnx
    | FuseGraph
    | ConvertOpenvino
    | QuantizeDynamic
    | QuantizeStatic
    | QuantizeStaticQdq
    | CompressWeights
    | CompressTables,
    Field(discriminator="step"),
]
