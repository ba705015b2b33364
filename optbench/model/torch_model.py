"""The torch side of a checkpoint: build it, look at its layers by role, resize them, save it.

transformers builds all layers of a body with one size. A pruned body is built here from the sizes in its config.json: a model on the meta
device, its layers resized, the tensors of the file assigned to it.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optbench.artifact.file_types import pickles_among
from optbench.artifact.folder import copy_companions
from optbench.errors import BaseModelError
from optbench.machine.disk import full_disk_errors
from optbench.model.body import Body
from optbench.model.checkpoint import describe, read_body, read_json
from optbench.model.safetensors import METADATA

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

__all__ = ["EncoderLayer", "build_module", "encoder_layers", "load_torch_model", "quiet_transformers", "resize_layer", "save_torch_model"]


@dataclass(frozen=True)
class EncoderLayer:
    """One layer's modules by role, whatever the architecture calls them; weights are (out, in), as in torch."""

    attention: Any  # holds `num_attention_heads`, `attention_head_size` and `all_head_size`
    query: Any  # (heads * head size, hidden), like key and value
    key: Any
    value: Any
    projection: Any  # (hidden, heads * head size): from the heads to the residual stream
    attention_norm: Any
    up: Any  # (feed-forward, hidden); the activation follows it
    down: Any
    output_norm: Any

    @property
    def heads(self) -> int:
        """The current number of heads."""
        return int(self.attention.num_attention_heads)

    @property
    def feed_forward(self) -> int:
        """The current feed-forward width."""
        return int(self.up.out_features)

    @property
    def position_bias_heads(self) -> tuple[int, ...] | None:
        """The columns of the shared relative position bias that its heads read; None for all, or where there is no such bias."""
        return getattr(self.attention, "position_bias_heads", None)


def encoder_layers(model: "PreTrainedModel") -> list[EncoderLayer]:
    """The layers of a BERT, RoBERTa, XLM-R or MPNet body, first to last."""
    found = []
    for layer in model.encoder.layer:
        inner = layer.attention
        if hasattr(inner, "attn"):  # MPNet
            names, projection, norm, attention = ("q", "k", "v"), inner.attn.o, inner.LayerNorm, inner.attn
        else:
            names, projection, norm, attention = ("query", "key", "value"), inner.output.dense, inner.output.LayerNorm, inner.self
        query, key, value = (getattr(attention, name) for name in names)
        up, down, output_norm = layer.intermediate.dense, layer.output.dense, layer.output.LayerNorm
        found.append(EncoderLayer(attention, query, key, value, projection, norm, up, down, output_norm))
    return found


def resize_layer(layer: EncoderLayer, heads: Sequence[int], neurons: Sequence[int]) -> None:
    """Keep some heads and feed-forward neurons of a layer, in place; those that are kept compute the same as before.

    Both are ascending numbers, at least one.
    """
    import torch

    size = layer.attention.attention_head_size
    if len(heads) != layer.heads:
        rows = (torch.tensor(heads)[:, None] * size + torch.arange(size)).flatten()
        for linear in (layer.query, layer.key, layer.value):
            _keep_outputs(linear, rows)
        _keep_inputs(layer.projection, rows)
        if not hasattr(layer.attention, "scaling"):  # MPNet: all layers share one bias table with a column per head
            _read_position_bias(layer.attention, [(layer.position_bias_heads or range(layer.heads))[head] for head in heads])
        layer.attention.num_attention_heads = len(heads)
        layer.attention.all_head_size = len(rows)
    if len(neurons) != layer.feed_forward:
        _keep_outputs(layer.up, torch.tensor(neurons))
        _keep_inputs(layer.down, torch.tensor(neurons))


def _keep_outputs(linear: Any, rows: "torch.Tensor") -> None:
    linear.weight, linear.bias = _select(linear.weight, 0, rows), _select(linear.bias, 0, rows)
    linear.out_features = len(rows)


def _keep_inputs(linear: Any, columns: "torch.Tensor") -> None:
    linear.weight = _select(linear.weight, 1, columns)
    linear.in_features = len(columns)


def _select(parameter: Any, dim: int, index: "torch.Tensor") -> "torch.nn.Parameter":
    import torch

    kept = parameter.detach().index_select(dim, index.to(parameter.device)).contiguous()
    return torch.nn.Parameter(kept, requires_grad=parameter.requires_grad)


def _read_position_bias(attention: Any, heads: Sequence[int]) -> None:
    """Let an MPNet attention read only its own columns of the shared position bias, (1, all heads, tokens, tokens)."""
    if not hasattr(attention, "position_bias_heads"):

        def select(module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            hidden, mask, bias, *rest = arguments
            return (hidden, mask, bias[:, list(module.position_bias_heads)], *rest)

        attention.register_forward_pre_hook(select)
    attention.position_bias_heads = tuple(heads)


def load_torch_model(folder: Path) -> "PreTrainedModel":
    """Load the transformer of a checkpoint, pruned or not: float32, eager attention, evaluation mode, no pooler.

    Only eager attention exports to plain MatMul and Softmax with every version.

    Raises:
        BaseModelError: the folder is not a whole checkpoint, or its weights do not fit its config.
    """
    import torch
    from safetensors import SafetensorError

    body = read_body(folder)
    if not (folder / "model.safetensors").is_file():
        pickles = ", ".join(pickles_among(path.name for path in folder.glob("*")))
        found = f"only {pickles}, which is a pickle and can run code" if pickles else "no model.safetensors"
        raise BaseModelError(f"{folder}: {found}; optbench reads only safetensors: convert it with transformers' save_pretrained")
    _import_transformers()
    try:
        with quiet_transformers():
            model, missing = _load_pruned(folder, body) if body.is_pruned else _load_alike(folder)
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise BaseModelError(f"{folder}: its weights cannot be loaded: {error}; download the model again") from error
    missing = sorted(name for name in missing if not name.startswith("pooler."))
    if missing:
        raise BaseModelError(f"{folder}: the weights lack {', '.join(missing[:5])} ({len(missing)} in all); download the model again")
    # The pooler feeds no output: without it the model is 4 * hidden * hidden bytes smaller, and so is the graph.
    if hasattr(model, "pooler"):
        model.pooler = None
    return model.to(torch.float32).eval()


def _load_alike(folder: Path) -> "tuple[PreTrainedModel, list[str]]":
    """Let transformers load the body; it fills missing weights with random numbers and only warns, so the missing names are returned."""
    import torch
    from transformers import AutoModel

    model, loading = AutoModel.from_pretrained(
        folder,
        attn_implementation="eager",
        dtype=torch.float32,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    return model, list(loading["missing_keys"])


def _load_pruned(folder: Path, body: Body) -> "tuple[PreTrainedModel, list[str]]":
    """Build the body from the sizes in its config, which transformers ignores, and assign the file's tensors to it."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModel.from_config(config, attn_implementation="eager")
        for index, (layer, (heads, feed_forward)) in enumerate(zip(encoder_layers(model), body.sizes, strict=True)):
            resize_layer(layer, range(heads), range(feed_forward))
            if body.position_bias_heads is not None and layer.position_bias_heads is not None:
                layer.attention.position_bias_heads = body.position_bias_heads[index]
    missing, _ = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False, assign=True)
    for module in model.modules():
        for name in getattr(module, "_non_persistent_buffers_set", ()):
            _fill_buffer(module, name)
    return model, list(missing)


def _fill_buffer(module: Any, name: str) -> None:
    """Fill a buffer that is not in the file: positions count up, and token types are all 0."""
    import torch

    shape = getattr(module, name).shape
    if name == "position_ids":
        buffer = torch.arange(shape[-1]).expand(shape)
    elif name == "token_type_ids":
        buffer = torch.zeros(shape, dtype=torch.int64)
    else:
        raise ValueError(f"transformers gives {type(module).__name__} a buffer {name!r}, which optbench cannot fill")
    setattr(module, name, buffer)


def read_layer_sizes(model: "PreTrainedModel") -> dict[str, Any]:
    """The keys of config.json for the current layers of `model`.

    A body whose layers are alike and keep all their heads needs only transformers' own keys, so any library loads it.
    """
    layers, whole = encoder_layers(model), model.config.num_attention_heads
    heads, widths = [layer.heads for layer in layers], [layer.feed_forward for layer in layers]
    bias_heads = [layer.position_bias_heads or tuple(range(whole)) for layer in layers]
    return {
        "num_hidden_layers": len(layers),
        "intermediate_size": max(widths),
        "layer_num_attention_heads": heads if set(heads) != {whole} else None,
        "layer_intermediate_size": widths if len(set(widths)) > 1 else None,
        "layer_position_bias_heads": bias_heads if any(layer.position_bias_heads is not None for layer in layers) else None,
    }


def save_torch_model(model: "PreTrainedModel", source: Path, out: Path) -> Body:
    """Write a body from `load_torch_model`, resized, trained or both, into `out` with the tokenizer, pooling and prompts of its source.

    Returns:
        the shape that was written; the weights reload bit-equal.

    Raises:
        MachineError: it could not be written (a full disk).
    """
    from safetensors.torch import save_file

    copy_companions(source, out)
    config = read_json(source / "config.json")
    sizes = read_layer_sizes(model)
    config = {**{key: value for key, value in config.items() if key not in sizes}, **{k: v for k, v in sizes.items() if v is not None}}
    with full_disk_errors(out):
        (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, out / "model.safetensors", METADATA)
    return read_body(out)


def build_module(folder: Path) -> "torch.nn.Module":
    """Build the torch module of a checkpoint: transformer, pooling, normalization and truncation in one.

    Its `forward(input_ids, attention_mask)` takes (batch, tokens) int64 and returns `last_hidden_state`
    (batch, tokens, hidden) and `sentence_embedding` (batch, dimension), float32.

    Raises:
        BaseModelError: the folder is not a whole checkpoint, or its weights do not fit its config.
    """
    import torch

    description = describe(folder)
    body = load_torch_model(folder)

    class SentenceEmbedder(torch.nn.Module):  # type: ignore[misc]  # torch is not type-checked here
        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            hidden = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            if description.pooling == "cls":
                pooled = hidden[:, 0]
            else:
                mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
                pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
            if description.normalize:
                pooled = torch.nn.functional.normalize(pooled, p=2.0, dim=1)
            if description.dimension is not None:
                # After normalization and without another, as sentence-transformers does: shorter vectors have a length below 1.
                pooled = pooled[:, : description.dimension]
            return hidden, pooled

    return SentenceEmbedder().eval()


def _import_transformers() -> None:
    """Import what transformers' models share without scikit-learn, pandas and SciPy: 2 of 10 CPU seconds.

    Only text generation with a draft model uses them. Whoever imports scikit-learn afterwards gets it.
    """
    hidden = "sklearn" not in sys.modules
    if hidden:
        sys.modules["sklearn"] = None  # type: ignore[assignment]  # the import system takes None for "not installed"
    try:
        import transformers.generation.utils  # noqa: F401  # the models of transformers import it
    finally:
        if hidden:
            del sys.modules["sklearn"]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bar and its table of missing weights off stderr: missing weights are an error here."""
    from transformers.utils import logging

    def without_bar(factory: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return factory(*args, **{**options, "disable": True})

    hook, verbosity = logging.set_tqdm_hook(without_bar), logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_tqdm_hook(hook)
        logging.set_verbosity(verbosity)
