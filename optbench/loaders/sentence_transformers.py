"""sentence-transformers, on ONNX Runtime and on OpenVINO.

Source: https://sbert.net/docs/sentence_transformer/usage/efficiency.html.
"""

from optbench.artifact.manifest import Kind
from optbench.loaders.base import ExportedModel, PythonLoader, Query
from optbench.loaders.environments import ST5_ONNX, ST6_OPENVINO

__all__ = ["SENTENCE_TRANSFORMERS_ONNX", "SENTENCE_TRANSFORMERS_OPENVINO"]


def _load(model: ExportedModel) -> list[str]:
    options: dict[str, object] = {"file_name": model.kind.main_file.rpartition("/")[2]}
    if model.kind is Kind.OPENVINO and model.openvino_options:
        options["ov_config"] = model.openvino_options
    return [
        "from sentence_transformers import SentenceTransformer",
        "",
        f'model = SentenceTransformer({model.folder!r}, backend="{model.kind}", model_kwargs={options!r})',
    ]


def _embed(model: ExportedModel, query: Query) -> list[str]:
    # An empty prompt keeps the model's default prompt away.
    prompt = ', prompt_name="query"' if query.has_prompt else ', prompt=""' if model.default_prompt else ""
    return [f"vectors = model.encode([{query.text}]{prompt})"]


SENTENCE_TRANSFORMERS_OPENVINO = PythonLoader(
    name="sentence-transformers-openvino",
    title="sentence-transformers (openvino)",
    distribution="sentence-transformers",
    packages=ST6_OPENVINO.requirements,
    reads=(Kind.OPENVINO,),
    on_card=(Kind.OPENVINO,),
    runtime="openvino",
    load=_load,
    embed=_embed,
    environment=ST6_OPENVINO,
)
SENTENCE_TRANSFORMERS_ONNX = PythonLoader(
    name="sentence-transformers-onnx",
    title="sentence-transformers (onnx)",
    distribution="sentence-transformers",
    packages=ST5_ONNX.requirements,
    reads=(Kind.ONNX,),
    on_card=(Kind.ONNX,),
    runtime="onnxruntime",
    load=_load,
    embed=_embed,
    environment=ST5_ONNX,
)
