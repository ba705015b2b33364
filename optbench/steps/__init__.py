"""Steps: each turns one artifact into another, and is itself an entry of a recipe.

In: a sealed artifact, and the inputs that the step declares (`BaseStep.inputs`). Out: the files of a new artifact and a `StepReport`:
what was matched, what was refused and why. `STEPS` is the registry: a new step is its file, a line there and its test.
"""

from typing import Annotated

from optbench.machine.registry import Registry
from optbench.steps.base import BaseStep, StepContext, StepReport

__all__ = ["STEPS", "BaseStep", "Step", "StepContext", "StepReport"]

STEPS = Registry[BaseStep](
    "step",
    __name__,
    {
        "prune_structured": "PruneStructured",
        "distill": "Distill",
        "finetune": "Finetune",
        "trim_vocabulary": "TrimVocabulary",
        "export_onnx": "ExportOnnx",
        "fuse_graph": "FuseGraph",
        "convert_openvino": "ConvertOpenvino",
        "quantize_dynamic": "QuantizeDynamic",
        "quantize_static": "QuantizeStatic",
        "quantize_static_qdq": "QuantizeStaticQdq",
        "compress_weights": "CompressWeights",
        "compress_tables": "CompressTables",
    },
)
Step = Annotated[BaseStep, STEPS]
