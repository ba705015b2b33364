"""Run by each loader's own interpreter: load a folder as that library's documentation says, and embed texts.

    python probe.py REQUEST.json ANSWER.npz

It imports the standard library, numpy and the one loader, nothing of optbench: most of these interpreters do not have it. Texts
go one at a time, since some quantized graphs give another vector in another batch. The answer holds `plain` and `prompted`, each
(texts, dimension) float32, and `facts`, JSON: the library's version, milliseconds to load and of each text.
"""

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Embed = Callable[[str, bool], NDArray[np.float32]]


def sentence_transformers(request: dict[str, Any]) -> Embed:
    """https://sbert.net/docs/sentence_transformer/usage/efficiency.html."""
    from sentence_transformers import SentenceTransformer

    if request["backend"] == "openvino":
        options = {"file_name": "openvino_model.xml", "ov_config": request["ov_config"]}
    else:
        options = {"file_name": "model.onnx", "provider": "CPUExecutionProvider"}
    model = SentenceTransformer(request["folder"], backend=request["backend"], model_kwargs=options, local_files_only=True)

    def embed(text: str, prompted: bool) -> NDArray[np.float32]:
        name = {"prompt_name": request["prompt_name"]} if prompted and request["prompt_name"] in model.prompts else {}
        rows: NDArray[np.float32] = model.encode([text], **name)[0]
        return rows

    return embed


def optimum_intel(request: dict[str, Any]) -> Embed:
    """https://huggingface.co/docs/optimum-intel/openvino/inference; it pools nothing, so that is done here by hand."""
    from optimum.intel import OVModelForFeatureExtraction
    from transformers import AutoTokenizer

    place = {"subfolder": "openvino"} if request["format"] == "openvino" else {"subfolder": "onnx", "file_name": "model.onnx"}
    model = OVModelForFeatureExtraction.from_pretrained(request["folder"], **place, export=False, ov_config=request["ov_config"])
    tokenizer = AutoTokenizer.from_pretrained(request["folder"])

    def embed(text: str, prompted: bool) -> NDArray[np.float32]:
        encoded = tokenizer(_prompted(request, text, prompted), truncation=True, max_length=request["max_tokens"], return_tensors="pt")
        hidden = model(**encoded).last_hidden_state.numpy()
        return _pool(request, hidden, encoded["attention_mask"].numpy())

    return embed


def onnxruntime(request: dict[str, Any]) -> Embed:
    """https://onnxruntime.ai/docs/api/python and a plain tokenizers.Tokenizer; the graph pools and normalizes."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(Path(request["folder"], "onnx", "model.onnx")), providers=["CPUExecutionProvider"])
    encode = _tokenizer(request)

    def embed(text: str, prompted: bool) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = session.run(["sentence_embedding"], encode(_prompted(request, text, prompted)))[0][0]
        return rows

    return embed


def openvino(request: dict[str, Any]) -> Embed:
    """https://docs.openvino.ai, compile_model on the IR, or on the ONNX file where there is no IR."""
    import openvino as ov

    name = "openvino/openvino_model.xml" if request["format"] == "openvino" else "onnx/model.onnx"
    model = ov.Core().compile_model(str(Path(request["folder"], name)), "CPU", request["ov_config"])
    encode = _tokenizer(request)

    def embed(text: str, prompted: bool) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = model(encode(_prompted(request, text, prompted)))["sentence_embedding"][0].copy()
        return rows

    return embed


def fastembed(request: dict[str, Any]) -> Embed:
    """https://qdrant.github.io/fastembed, add_custom_model and specific_model_path; it pools and normalizes itself."""
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    TextEmbedding.add_custom_model(
        model="optbench/artifact",
        pooling=PoolingType.MEAN if request["pooling"] == "mean" else PoolingType.CLS,
        normalization=request["normalize"],
        sources=ModelSource(hf="optbench/artifact"),
        dim=request["dimension"],
        model_file="onnx/model.onnx",
    )
    model = TextEmbedding("optbench/artifact", specific_model_path=request["folder"], providers=["CPUExecutionProvider"])

    def embed(text: str, prompted: bool) -> NDArray[np.float32]:
        return np.asarray(next(iter(model.embed([_prompted(request, text, prompted)], batch_size=1))), dtype=np.float32)

    return embed


def _prompted(request: dict[str, Any], text: str, prompted: bool) -> str:
    """The text with the query prompt in front, as these libraries leave to their caller."""
    return f"{request['prompt']}{text}" if prompted else text


def _tokenizer(request: dict[str, Any]) -> Callable[[str], dict[str, NDArray[np.int64]]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(request["folder"], "tokenizer.json")))
    tokenizer.enable_truncation(request["max_tokens"])
    tokenizer.no_padding()

    def encode(text: str) -> dict[str, NDArray[np.int64]]:
        row = tokenizer.encode(text)
        return {"input_ids": np.array([row.ids], np.int64), "attention_mask": np.array([row.attention_mask], np.int64)}

    return encode


def _pool(request: dict[str, Any], hidden: NDArray[np.float32], mask: NDArray[np.int64]) -> NDArray[np.float32]:
    weights = mask[..., None].astype(np.float32)
    pooled = hidden[:, 0] if request["pooling"] == "cls" else (hidden * weights).sum(1) / weights.sum(1)
    row: NDArray[np.float32] = pooled[0] / (np.linalg.norm(pooled[0]) if request["normalize"] else 1)
    return row


LOADERS: dict[str, tuple[Callable[[dict[str, Any]], Embed], str]] = {
    "sentence-transformers": (sentence_transformers, "sentence-transformers"),
    "optimum-intel": (optimum_intel, "optimum-intel"),
    "onnxruntime": (onnxruntime, "onnxruntime"),
    "openvino": (openvino, "openvino"),
    "fastembed": (fastembed, "fastembed"),
}


def main() -> None:
    """Load, embed each text plainly and with the prompt, write the answer."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    load, distribution = LOADERS[request["loader"]]
    start = time.perf_counter_ns()
    embed = load(request)
    load_ns = time.perf_counter_ns() - start
    rows: dict[str, list[NDArray[np.float32]]] = {"plain": [], "prompted": []}
    took_ns = []
    for which, prompted in (("plain", False), ("prompted", True)):
        for text in request["texts"]:
            start = time.perf_counter_ns()
            rows[which].append(embed(text, prompted))
            took_ns.append(time.perf_counter_ns() - start)
    facts = {"version": version(distribution), "load_ns": load_ns, "took_ns": took_ns}
    np.savez(sys.argv[2], plain=np.stack(rows["plain"]), prompted=np.stack(rows["prompted"]), facts=np.array(json.dumps(facts)))


if __name__ == "__main__":
    main()
