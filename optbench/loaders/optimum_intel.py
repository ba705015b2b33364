"""optimum-intel, which returns token embeddings: the code on the card pools them.

Source: https://huggingface.co/docs/optimum-intel/openvino/inference.
"""

from optbench.artifact.manifest import Kind
from optbench.loaders.base import ExportedModel, PythonLoader, Query
from optbench.loaders.environments import ST6_OPENVINO

__all__ = ["OPTIMUM_INTEL"]


def _load(model: ExportedModel) -> list[str]:
    place = 'subfolder="openvino"' if model.kind is Kind.OPENVINO else 'subfolder="onnx", file_name="model.onnx", export=False'
    options = f", ov_config={model.openvino_options!r}" if model.openvino_options else ""
    return [
        "from optimum.intel import OVModelForFeatureExtraction",
        "from transformers import AutoTokenizer",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({model.folder!r})",
        f"model = OVModelForFeatureExtraction.from_pretrained({model.folder!r}, {place}{options})",
    ]


def _embed(model: ExportedModel, query: Query) -> list[str]:
    lines = [
        f'tokens = model(**tokenizer({query.prompted}, return_tensors="pt")).last_hidden_state[0]',
        "vectors = tokens[:1].numpy()" if model.pooling == "cls" else "vectors = tokens.mean(0, keepdim=True).numpy()",
    ]
    if model.normalize:
        lines.append("vectors /= (vectors**2).sum(1, keepdims=True) ** 0.5")
    return [*lines, f"vectors = vectors{model.truncation}"] if model.truncation else lines


OPTIMUM_INTEL = PythonLoader(
    name="optimum-intel",
    title="optimum-intel",
    distribution="optimum-intel",
    packages=ST6_OPENVINO.requirements,
    reads=(Kind.OPENVINO, Kind.ONNX),
    on_card=(Kind.OPENVINO,),
    runtime="openvino",
    load=_load,
    embed=_embed,
    environment=ST6_OPENVINO,
)
