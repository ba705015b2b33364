"""Calibration texts run through a body one layer at a time: only one layer's activations are in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optbench.errors import StepError
from optbench.model.tokenizer import encode_batch, load_tokenizer
from optbench.model.torch_model import encoder_layers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

__all__ = ["Batch", "LayerStates", "LayerTargets", "embed", "layer_context", "layer_states", "read_batches", "run_block", "start"]

# Padded tokens per batch: keeps a batch's attention scores and the gradients through a whole body small.
BATCH_TOKENS = 1024
# Longer texts are truncated: a few of them would otherwise dominate the fit.
TEXT_TOKENS_MAX = 128


@dataclass(frozen=True)
class Batch:
    """Texts of about one length.

    Attributes:
        ids: (texts, tokens) int64.
        mask: (texts, tokens) bool, true for tokens.
        additive: (texts, 1, 1, tokens), what is added to attention scores.
    """

    ids: "torch.Tensor"
    mask: "torch.Tensor"
    additive: "torch.Tensor"


@dataclass(frozen=True)
class LayerTargets:
    """What one layer computes for a batch and a smaller one is fitted to; tokens without padding, each (tokens, hidden).

    Attributes:
        attention_sum: residual and projection, before the norm.
        middle: the stream between attention and feed-forward, normalized.
        output_sum: residual and down projection, before the norm.
    """

    attention_sum: "torch.Tensor"
    middle: "torch.Tensor"
    output_sum: "torch.Tensor"


@dataclass(frozen=True)
class LayerStates:
    """What one layer computes for a batch: the inputs of its attention and down projections, (tokens, width), and its targets."""

    context: "torch.Tensor"
    active: "torch.Tensor"
    targets: LayerTargets


def read_batches(folder: Path, texts: Sequence[str], where: str, texts_min: int) -> list[Batch]:
    """Tokenize distinct texts, at least `texts_min`, and group them by length, the shortest first."""
    import torch

    distinct = list(dict.fromkeys(text for text in texts if text.strip()))
    if len(distinct) < texts_min:
        raise StepError(
            f"{where}: {len(distinct)} distinct texts to calibrate on, expected at least {texts_min}; raise the recipe's "
            "calibration.texts, or name a task with more calibration texts"
        )
    tokenizer = load_tokenizer(folder)
    tokenizer.enable_truncation(min(TEXT_TOKENS_MAX, (tokenizer.truncation or {}).get("max_length", TEXT_TOKENS_MAX)))
    lengths = [sum(row.attention_mask) for row in tokenizer.encode_batch_fast(distinct)]
    groups: list[list[int]] = [[]]
    for index in np.argsort(lengths, kind="stable"):
        if groups[-1] and (len(groups[-1]) + 1) * lengths[index] > BATCH_TOKENS:
            groups.append([])
        groups[-1].append(int(index))
    batches = []
    for group in groups:
        ids, mask = encode_batch(tokenizer, [distinct[index] for index in group])
        kept = torch.from_numpy(mask).to(torch.bool)
        additive = torch.where(kept, 0.0, torch.finfo(torch.float32).min)[:, None, None, :]
        batches.append(Batch(torch.from_numpy(ids), kept, additive))
    return batches


def start(model: "PreTrainedModel", batch: Batch) -> "torch.Tensor":
    """What the first layer reads, (texts, tokens, hidden)."""
    hidden: torch.Tensor = model.embeddings(input_ids=batch.ids)
    return hidden


def _position_bias(model: "PreTrainedModel", hidden: "torch.Tensor") -> "tuple[torch.Tensor, ...]":
    return (model.encoder.compute_position_bias(hidden),) if hasattr(model.encoder, "compute_position_bias") else ()


def run_block(model: "PreTrainedModel", block: Any, hidden: "torch.Tensor", batch: Batch) -> "torch.Tensor":
    """One layer's output, (texts, tokens, hidden)."""
    output = block(hidden, batch.additive, *_position_bias(model, hidden))
    return output[0] if isinstance(output, tuple) else output


def layer_context(model: "PreTrainedModel", index: int, hidden: "torch.Tensor", batch: Batch) -> "torch.Tensor":
    """What one layer's attention projection reads, (tokens, width), from what the layer reads, (texts, tokens, hidden)."""
    import torch

    block, layer = model.encoder.layer[index], encoder_layers(model)[index]
    contexts: list[torch.Tensor] = []
    with torch.no_grad(), layer.projection.register_forward_pre_hook(lambda _, arguments: contexts.append(arguments[0])):
        block.attention(hidden, batch.additive, *_position_bias(model, hidden))
    return contexts[0][batch.mask]


def layer_states(model: "PreTrainedModel", index: int, hidden: "torch.Tensor", batch: Batch) -> LayerStates:
    """Run one layer and record the inputs and outputs of its linear layers."""
    import torch

    layer, context = encoder_layers(model)[index], layer_context(model, index, hidden, batch)
    with torch.no_grad():
        attention_sum = layer.projection(context) + hidden[batch.mask]
        middle = layer.attention_norm(attention_sum)
        active = model.encoder.layer[index].intermediate(middle)
        return LayerStates(context, active, LayerTargets(attention_sum, middle, layer.down(active) + middle))


def embed(hidden: "torch.Tensor", batch: Batch, pooling: str) -> "torch.Tensor":
    """Unit embeddings of a batch, (texts, hidden), from the last layer's output: normalized even if the model does not normalize."""
    import torch

    if pooling == "cls":
        pooled = hidden[:, 0]
    else:
        mask = batch.mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(pooled, dim=1)
