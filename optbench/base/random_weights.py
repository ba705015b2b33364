"""Random weights of a given body: true latency, meaningless accuracy.

With them a recipe runs at full size where its base is out of reach. The file is written block by block, so a large body (2.3 GB for a
multilingual one) is never in memory.
"""

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod, sqrt
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

from optbench.machine.cpu import usable_threads
from optbench.machine.progress import Progress
from optbench.model.body import OPTIONAL_BODY_KEYS, Body
from optbench.model.safetensors import METADATA, encode_header

__all__ = ["FORMAT", "file_bytes", "write_config", "write_weights"]

FORMAT = 1
"""Incremented when the same body and seed give other bytes."""

BLOCK_ITEMS = 1 << 20  # per thread 4 MB of weights, 14 MB with the buffers that make them
LEVELS = 1 << 16
MODEL_TYPES = {"BertModel": "bert", "XLMRobertaModel": "xlm-roberta", "RobertaModel": "roberta", "MPNetModel": "mpnet"}
RELATIVE_BUCKETS = 32  # MPNetConfig's default


@dataclass(frozen=True)
class _Tensor:
    shape: tuple[int, ...]
    mean: float
    deviation: float


class _Block(NamedTuple):
    """A block of a tensor's items: which, how many, from what distribution (mean, deviation), and where in the file."""

    tensor: int
    number: int
    items: int
    spread: tuple[float, float]
    offset: int


def _tensors(body: Body) -> dict[str, _Tensor]:
    """Every parameter of the transformers class, by name.

    Dense layers keep the variance of their input (deviation 1 / sqrt of the fan-in, 0.031 at a width of 1024), times a gain: 2 for queries
    and keys, and 0.3 at 24 layers, more with fewer, for the attention output. With gains of 1, 24 layers make all tokens of a text the same
    vector (cosine 1.000, which hides a wrong pooling); with these the cosine is 0.78, and between texts 0.77 (CLS) or 0.84 (mean). Norms
    vary a little, so that folding them is not trivial.
    """
    hidden = body.hidden
    tensors: dict[str, _Tensor] = {}

    def add_dense(name: str, outputs: int, inputs: int, gain: float = 1.0) -> None:
        tensors[f"{name}.weight"] = _Tensor((outputs, inputs), 0.0, gain / sqrt(inputs))
        tensors[f"{name}.bias"] = _Tensor((outputs,), 0.0, 0.02)

    def add_norm(name: str) -> None:
        tensors[f"{name}.weight"] = _Tensor((hidden,), 1.0, 0.05)
        tensors[f"{name}.bias"] = _Tensor((hidden,), 0.0, 0.02)

    mpnet = body.architecture == "MPNetModel"
    # Words outweigh positions and types, which all texts share: otherwise all texts start from nearly the same vectors.
    tensors["embeddings.word_embeddings.weight"] = _Tensor((body.vocabulary, hidden), 0.0, 0.05)
    tensors["embeddings.position_embeddings.weight"] = _Tensor((body.positions, hidden), 0.0, 0.02)
    if not mpnet:
        tensors["embeddings.token_type_embeddings.weight"] = _Tensor((body.type_vocabulary, hidden), 0.0, 0.02)
    add_norm("embeddings.LayerNorm")
    if mpnet:
        tensors["encoder.relative_attention_bias.weight"] = _Tensor((RELATIVE_BUCKETS, body.heads), 0.0, 0.5)
    projections = ("attn.q", "attn.k", "attn.v", "attn.o") if mpnet else ("self.query", "self.key", "self.value", "output.dense")
    attention_norm = "LayerNorm" if mpnet else "output.LayerNorm"
    # All layers together add about as much whatever their number: only this makes CLS vectors of texts differ.
    attention_gain = min(1.0, 0.3 * sqrt(24 / body.layers))
    for index, (heads, feed_forward) in enumerate(body.sizes):
        layer, width = f"encoder.layer.{index}", heads * body.head_size
        for projection, gain in zip(projections[:3], (2.0, 2.0, 1.0), strict=True):
            add_dense(f"{layer}.attention.{projection}", width, hidden, gain)
        add_dense(f"{layer}.attention.{projections[3]}", hidden, width, attention_gain)
        add_norm(f"{layer}.attention.{attention_norm}")
        add_dense(f"{layer}.intermediate.dense", feed_forward, hidden)
        add_dense(f"{layer}.output.dense", hidden, feed_forward)
        add_norm(f"{layer}.output.LayerNorm")
    # No embedding needs it, but loaders report a checkpoint without it as incomplete.
    add_dense("pooler.dense", hidden, hidden)
    return tensors


def _encode_header(tensors: Mapping[str, _Tensor], seed: int) -> bytes:
    metadata = {**METADATA, "optbench": f"random weights, seed {seed}: latency is true, accuracy is meaningless"}
    return encode_header({name: ("F32", tensor.shape) for name, tensor in tensors.items()}, metadata)


def file_bytes(body: Body) -> int:
    """The size of the file that `write_weights` writes, in bytes, but for the digits of the seed."""
    tensors = _tensors(body)
    return len(_encode_header(tensors, 0)) + 4 * sum(prod(tensor.shape) for tensor in tensors.values())


def _blocks(tensors: Mapping[str, _Tensor], offset: int) -> Iterator[_Block]:
    for tensor_index, tensor in enumerate(tensors.values()):
        items = prod(tensor.shape)
        for index, start in enumerate(range(0, items, BLOCK_ITEMS)):
            spread = (tensor.mean, tensor.deviation)
            yield _Block(tensor_index, index, min(BLOCK_ITEMS, items - start), spread, offset + 4 * start)
        offset += 4 * items


def write_weights(body: Body, seed: int, path: Path, progress: Progress) -> None:
    """Write seeded random weights as safetensors, fp32; the same body and seed give the same bytes.

    Each block has its own counter-based generator (Philox, whose raw stream numpy guarantees: NEP 19), keyed by seed, tensor and block, so
    threads may fill blocks in any order. 16 random bits pick one of 65,536 quantiles of the normal distribution: ten times as fast as
    sampling it, and independent of numpy's samplers. `seed` is 0 to 2^64 - 1; an existing file is replaced.
    """
    import numpy as np

    tensors = _tensors(body)
    header = _encode_header(tensors, seed)
    inverse = NormalDist().inv_cdf
    lower = [inverse((index + 0.5) / LEVELS) for index in range(LEVELS // 2)]
    quantiles = np.array([*lower, *(-value for value in reversed(lower))], dtype=np.float64)
    spreads = {(tensor.mean, tensor.deviation) for tensor in tensors.values()}
    levels = {(mean, deviation): (quantiles * deviation + mean).astype("<f4") for mean, deviation in spreads}

    with path.open("wb") as file:
        file.write(header)
        file.flush()
        descriptor = file.fileno()

        def write_block(block: _Block) -> int:
            key = np.array([seed, (block.tensor << 32) + block.number], dtype=np.uint64)
            choice = np.random.Philox(key=key).random_raw(-(-block.items // 4)).view("<u2")[: block.items]
            values = np.empty(block.items, dtype="<f4")
            # "clip" makes take write directly into `values`; no index is out of range.
            np.take(levels[block.spread], choice, out=values, mode="clip")
            view, offset = values.data.cast("B"), block.offset
            while view:
                written = os.pwrite(descriptor, view, offset)
                view, offset = view[written:], offset + written
            return block.items

        total = sum(prod(tensor.shape) for tensor in tensors.values())
        done = 0
        pool = ThreadPoolExecutor(min(4, usable_threads()))
        try:
            for items in pool.map(write_block, _blocks(tensors, len(header))):
                done += items
                progress("writing random weights", done / total)
        finally:
            pool.shutdown(cancel_futures=True)


def write_config(body: Body, special_ids: Mapping[str, int], path: Path) -> None:
    """Write the `config.json` that transformers builds `body` from, with the tokenizer's ids of `begin` and `end`."""
    config: dict[str, Any] = {
        "architectures": [body.architecture],
        "model_type": MODEL_TYPES[body.architecture],
        "num_hidden_layers": body.layers,
        "hidden_size": body.hidden,
        "num_attention_heads": body.heads,
        "intermediate_size": body.feed_forward,
        "vocab_size": body.vocabulary,
        "max_position_embeddings": body.positions,
        "layer_norm_eps": body.layer_norm_epsilon,
        "pad_token_id": body.pad_id,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "dtype": "float32",
    }
    sizes = ("layer_heads", "layer_feed_forward", "position_bias_heads")
    config |= {OPTIONAL_BODY_KEYS[name]: getattr(body, name) for name in sizes if getattr(body, name) is not None}
    if body.architecture == "MPNetModel":
        config["relative_attention_num_buckets"] = RELATIVE_BUCKETS
    else:
        config["type_vocab_size"] = body.type_vocabulary
    if body.architecture != "BertModel":
        config |= {"bos_token_id": special_ids["begin"], "eos_token_id": special_ids["end"]}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
