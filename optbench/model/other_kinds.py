"""Model folders that optbench does not take, named for what they are, with what to give instead."""

from collections.abc import Collection
from pathlib import Path
from types import MappingProxyType

from optbench.errors import BaseModelError
from optbench.model.json_file import read_json, read_object

__all__ = ["name_by_files", "name_by_module", "name_other_kind"]

PEFT = "a PEFT adapter without its model: load it with its model, call merge_and_unload(), and save the result"
ROUTER = "a Router, with an encoder for each kind of input: give the folder of one encoder, saved as a SentenceTransformer of its own"
CLIP = "a CLIP model, for images and texts: optbench takes text encoders"
STATIC = "a StaticEmbedding, a table of token vectors without a transformer: it is fast on a CPU already"
SPARSE = "a SPLADE model (SparseEncoder), whose vectors are as wide as the vocabulary: optbench takes dense text embeddings"
CROSS = "a CrossEncoder, which scores pairs of texts: optbench takes models that embed one text"
MULTI = "a ColBERT model (MultiVectorEncoder), with a vector for each token: optbench takes models with one vector for a text"
OLD = "a model of word vectors without a transformer: optbench takes transformer encoders"
DENSE = "a layer after the pooling that the exported graph would leave out"

# Modules of sentence-transformers 6.2 by class name, whatever package they lie in.
MODULES = MappingProxyType(
    {
        **dict.fromkeys(("Router", "Asym"), ROUTER),
        "CLIPModel": CLIP,
        **dict.fromkeys(("StaticEmbedding", "SparseStaticEmbedding"), STATIC),
        **dict.fromkeys(("SpladePooling", "MLMTransformer", "SparseAutoEncoder"), SPARSE),
        "LogitScore": CROSS,
        **dict.fromkeys(("MultiVectorMask", "TokenPooling"), MULTI),
        **dict.fromkeys(("BoW", "WordEmbeddings", "WordWeights", "CNN", "LSTM"), OLD),
        **dict.fromkeys(("Dense", "LayerNorm", "Dropout", "WeightedLayerPooling"), DENSE),
    }
)
MODEL_TYPES = MappingProxyType({"SparseEncoder": SPARSE, "CrossEncoder": CROSS, "MultiVectorEncoder": MULTI})


def name_by_module(kind: str) -> str | None:
    """What a folder is whose modules.json names a module of this class; None for a class that says nothing."""
    return MODULES.get(kind)


def name_by_files(names: Collection[str]) -> str | None:
    """What a folder is by its file names alone; None where they do not tell."""
    if "adapter_config.json" in names:
        return PEFT
    if any(name.rpartition("/")[2] == "router_config.json" for name in names):
        return ROUTER
    # sentence-transformers names a module's folder by its place and class: 0_CLIPModel.
    classes = [name.partition("/")[0].partition("_")[2] for name in names if "/" in name]
    return next((MODULES[each] for each in classes if each in MODULES and MODULES[each] != DENSE), None)


def name_other_kind(folder: Path) -> str | None:
    """What a model folder is if it is no SentenceTransformer with a transformer; None where nothing says so."""
    names = [path.relative_to(folder).as_posix() for path in (*folder.glob("*"), *folder.glob("*/*.json"))]
    found = name_by_files(names)
    if found is not None:
        return found
    try:
        modules = read_json(folder / "modules.json") if "modules.json" in names else []
        settings = read_object(folder / "config_sentence_transformers.json", required=False)
        config = read_object(folder / "config.json", required=False)
    except BaseModelError:  # describing the folder says what is broken
        return None
    types = [str(module.get("type", "")) for module in modules if isinstance(module, dict)] if isinstance(modules, list) else []
    classes = [each.rpartition(".")[2] for each in types]
    by_module = next((MODULES[each] for each in classes if MODULES.get(each, DENSE) != DENSE), None)
    if by_module is None:
        by_module = MODEL_TYPES.get(str(settings.get("model_type")))
    if by_module is not None:
        return by_module
    architectures = config.get("architectures")
    if not modules and isinstance(architectures, list) and any(str(each).endswith("ForSequenceClassification") for each in architectures):
        return CROSS
    return CLIP if config.get("model_type") in ("clip", "siglip", "chinese_clip") else None
