"""fastembed, which pools and normalizes itself.

Source: https://qdrant.github.io/fastembed, add_custom_model and specific_model_path.
"""

from optbench.artifact.manifest import Kind
from optbench.loaders.base import ExportedModel, PythonLoader, Query

__all__ = ["FASTEMBED"]


def _load(model: ExportedModel) -> list[str]:
    return [
        "from fastembed import TextEmbedding",
        "from fastembed.common.model_description import ModelSource, PoolingType",
        "",
        f"name = {'optbench/' + model.name!r}",
        "TextEmbedding.add_custom_model(",
        f"    model=name, pooling=PoolingType.{model.pooling.upper()}, normalization={model.normalize}, dim={model.dimension},",
        '    sources=ModelSource(hf=name), model_file="onnx/model.onnx",',
        ")",
        f"model = TextEmbedding(name, specific_model_path={model.folder!r})",
    ]


def _embed(model: ExportedModel, query: Query) -> list[str]:
    if model.truncate_dim:
        return [f"vectors = [vector[:{model.truncate_dim}] for vector in model.embed([{query.prompted}])]"]
    return [f"vectors = list(model.embed([{query.prompted}]))"]


FASTEMBED = PythonLoader(
    name="fastembed",
    title="fastembed",
    distribution="fastembed",
    packages=("fastembed",),
    reads=(Kind.ONNX,),
    on_card=(Kind.ONNX,),
    runtime="onnxruntime",
    load=_load,
    embed=_embed,
    extra="loaders",
    files=("tokenizer_config.json",),
)
