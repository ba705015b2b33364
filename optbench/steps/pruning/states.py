"""Calibration texts on their way through a body, one layer at a time: only the tokens of one layer are in memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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

# Padded tokens of a batch: the attention scores of a batch and the gradients through a whole body stay small.
BATCH_TOKENS = 1024
# Longer texts are cut: a few of them would otherwise be most of what the layers are fitted to.
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
    """What one layer computes for a batch that a smaller one is fitted to; only its tokens, padding left out, each (tokens, hidden).

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
    """What one layer computes for a batch; only its tokens, padding left out.

    Attributes:
        context: what the attention projection reads, (tokens, width).
        active: what the down projection reads, (tokens, width).
        targets: what a smaller layer is fitted to.
    """

    context: "torch.Tensor"
    active: "torch.Tensor"
    targets: LayerTargets


def read_batches(folder: Path, texts: Sequence[str], where: str, wanted: int) -> list[Batch]:
    """Tokenize distinct texts and group them by length, the shortest first.

    Raises:
        StepError: fewer than `wanted` texts.
    """
    import torch

    distinct = list(dict.fromkeys(text for text in texts if text.strip()))
    if len(distinct) < wanted:
        raise StepError(
            f"{where}: {len(distinct)} distinct texts to calibrate on, at least {wanted} are wanted; raise the recipe's calibration.texts, "
            "or name a task that has more to spare"
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


@contextmanager
def _inputs_of(linear: Any, kept: "list[torch.Tensor]") -> Iterator[None]:
    handle = linear.register_forward_pre_hook(lambda _, arguments: kept.append(arguments[0]))
    try:
        yield
    finally:
        handle.remove()


def layer_context(model: "PreTrainedModel", index: int, hidden: "torch.Tensor", batch: Batch) -> "torch.Tensor":
    """What one layer's attention projection reads, (tokens, width), from what the layer reads, (texts, tokens, hidden)."""
    import torch

    block, layer = model.encoder.layer[index], encoder_layers(model)[index]
    contexts: list[torch.Tensor] = []
    with torch.no_grad(), _inputs_of(layer.projection, contexts):
        block.attention(hidden, batch.additive, *_position_bias(model, hidden))
    return contexts[0][batch.mask]


def layer_states(model: "PreTrainedModel", index: int, hidden: "torch.Tensor", batch: Batch) -> LayerStates:
    """Run one layer and keep what its linear layers read and give."""
    import torch

    layer, context = encoder_layers(model)[index], layer_context(model, index, hidden, batch)
    with torch.no_grad():
        attention_sum = layer.projection(context) + hidden[batch.mask]
        middle = layer.attention_norm(attention_sum)
        active = model.encoder.layer[index].intermediate(middle)
        return LayerStates(context, active, LayerTargets(attention_sum, middle, layer.down(active) + middle))


def embed(hidden: "torch.Tensor", batch: Batch, pooling: str) -> "torch.Tensor":
    """Unit embeddings of a batch, (texts, hidden), from the last layer's output.

    Whether the model normalizes or not: its vectors are compared by their cosine.
    """
    import torch

    if pooling == "cls":
        pooled = hidden[:, 0]
    else:
        mask = batch.mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(pooled, dim=1)
