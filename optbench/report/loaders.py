"""How an exported folder is loaded, in each library that can: the code that its card gives."""

from dataclasses import dataclass

from optbench.artifact.folder import Kind
from optbench.loaders.environments import ST5_ONNX, ST6_OPENVINO
from optbench.record.record import Record

__all__ = ["Loader", "loaders_of"]

# What was proven together: sentence-transformers loads each format with a library that holds others back.
PINNED = {"openvino": ST6_OPENVINO, "onnx": ST5_ONNX}


@dataclass(frozen=True)
class Loader:
    """A way to load the folder.

    Attributes:
        name: the library's.
        install: what a shell gives to pip.
        code: Python; leaves `vectors`, (1, dimension), of one query.
    """

    name: str
    install: str
    code: str


def loaders_of(record: Record, folder: str) -> list[Loader]:
    """The loaders of a record's final artifact.

    Args:
        record: of the artifact.
        folder: where the artifact lies, as the reader's code names it.
    """
    if record.final.kind is Kind.OPENVINO:
        return [_optbench(folder), _sentence_transformers(record, folder), _optimum_intel(record, folder), _openvino(record, folder)]
    if record.final.kind is Kind.ONNX:
        others = [_sentence_transformers(record, folder), _onnxruntime(record, folder), _fastembed(record, folder)]
        return [_optbench(folder), *others, _openvino(record, folder)]
    return [_optbench(folder)]


def _query(record: Record) -> str:
    """A query with its prompt in front, as a Python literal."""
    return repr(record.recipe.base.prompts.query + "running shoes")


def _precision(record: Record) -> dict[str, str]:
    """OpenVINO's option that keeps the precision the artifact was measured in; its own default is bf16 where the CPU has it."""
    precision = record.final.engine.get("inference_precision") if record.final.kind is Kind.OPENVINO else "f32"
    return {"INFERENCE_PRECISION_HINT": str(precision)} if precision else {}


def _optbench(folder: str) -> Loader:
    code = f'import optbench\n\nencoder = optbench.load({folder!r})\nvectors = encoder.encode(["running shoes"], prompt="query")'
    return Loader("optbench", "optbench", code)


def _sentence_transformers(record: Record, folder: str) -> Loader:
    backend = "openvino" if record.final.kind is Kind.OPENVINO else "onnx"
    file_name = "openvino_model.xml" if backend == "openvino" else "model.onnx"
    prompt = ', prompt_name="query"' if record.recipe.base.prompts.query else ""
    options: dict[str, object] = {"file_name": file_name}
    if backend == "openvino" and _precision(record):
        options["ov_config"] = _precision(record)
    lines = [
        "from sentence_transformers import SentenceTransformer",
        "",
        f'model = SentenceTransformer({folder!r}, backend="{backend}", model_kwargs={options!r})',
        f'vectors = model.encode(["running shoes"]{prompt})',
    ]
    return Loader(f"sentence-transformers ({backend})", " ".join(PINNED[backend].requirements), "\n".join(lines))


def _tokenized(library: str, record: Record, folder: str) -> list[str]:
    """The imports and the plain tokenization of one query, for an engine that comes without."""
    return [
        "import numpy as np",
        f"import {library}",
        "from tokenizers import Tokenizer",
        "",
        f"tokenizer = Tokenizer.from_file({folder + '/tokenizer.json'!r})",
        f"tokenizer.enable_truncation({record.recipe.base.max_tokens})",
        "tokenizer.no_padding()",
        f"encoded = tokenizer.encode({_query(record)})",
        'inputs = {"input_ids": np.array([encoded.ids]), "attention_mask": np.array([encoded.attention_mask])}',
    ]


def _onnxruntime(record: Record, folder: str) -> Loader:
    lines = [
        *_tokenized("onnxruntime", record, folder),
        f'session = onnxruntime.InferenceSession({folder + "/onnx/model.onnx"!r}, providers=["CPUExecutionProvider"])',
        '(vectors,) = session.run(["sentence_embedding"], inputs)',
    ]
    return Loader("ONNX Runtime", "onnxruntime tokenizers", "\n".join(lines))


def _openvino(record: Record, folder: str) -> Loader:
    file = "/openvino/openvino_model.xml" if record.final.kind is Kind.OPENVINO else "/onnx/model.onnx"
    options = {"PERFORMANCE_HINT": "LATENCY", **_precision(record)}
    lines = [
        *_tokenized("openvino", record, folder),
        f'model = openvino.Core().compile_model({folder + file!r}, "CPU", {options!r})',
        'vectors = model(inputs)["sentence_embedding"]',
    ]
    return Loader("OpenVINO", "openvino tokenizers", "\n".join(lines))


def _optimum_intel(record: Record, folder: str) -> Loader:
    precision = f", ov_config={_precision(record)!r}" if _precision(record) else ""
    lines = [
        "from optimum.intel import OVModelForFeatureExtraction",
        "from transformers import AutoTokenizer",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({folder!r})",
        f'model = OVModelForFeatureExtraction.from_pretrained({folder!r}, subfolder="openvino"{precision})',
        f'tokens = model(**tokenizer({_query(record)}, return_tensors="pt")).last_hidden_state[0]',
        "vectors = tokens[:1].numpy()" if record.recipe.base.pooling == "cls" else "vectors = tokens.mean(0, keepdim=True).numpy()",
    ]
    if record.recipe.base.normalize:
        lines.append("vectors /= (vectors**2).sum(1, keepdims=True) ** 0.5")
    return Loader("optimum-intel", " ".join(ST6_OPENVINO.requirements), "\n".join(lines))


def _fastembed(record: Record, folder: str) -> Loader:
    base = record.recipe.base
    lines = [
        "from fastembed import TextEmbedding",
        "from fastembed.common.model_description import ModelSource, PoolingType",
        "",
        f"name = {'optbench/' + record.recipe.name!r}",
        "TextEmbedding.add_custom_model(",
        f"    model=name, pooling=PoolingType.{base.pooling.upper()}, normalization={base.normalize}, dim={base.body.hidden},",
        '    sources=ModelSource(hf=name), model_file="onnx/model.onnx",',
        ")",
        f"model = TextEmbedding(name, specific_model_path={folder!r})",
        f"vectors = list(model.embed([{_query(record)}]))",
    ]
    return Loader("fastembed", "fastembed", "\n".join(lines))
