"""A checkpoint as sentence-transformers trains it: optbench's own module, whose layers may differ in size, in a SentenceTransformer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from optbench.errors import StepError
from optbench.model.checkpoint import describe
from optbench.model.tokenizer import encode_batch, load_tokenizer
from optbench.model.torch_model import build_module
from optbench.steps.training.packing import pack, pool, run_packed

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from optbench.machine.cpu import Machine

__all__ = ["build_trainable", "torch_body", "use_bf16"]

# oneDNN, which computes in bf16, compiles a product for every shape and caches 1,024 of them; batches of 40 lengths through layers of
# unequal sizes need thousands: a third more steps, for 0.6 GB more (bench/LOG.md, D3). 16,384 gain nothing.
PRIMITIVE_CACHE, PRIMITIVES_KEPT = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "4096"


def build_trainable(folder: Path, packed: bool = False) -> SentenceTransformer:
    """Build a checkpoint for training: tables frozen, no dropout, pooling in float32 whatever the transformer computes in.

    Frozen tables preserve the words that the training texts lack, and save an optimizer state three times their size. oneDNN's cache
    in this process is enlarged, unless its environment variable is set. A packed model lays the texts of a batch out one after another
    (`packing.pack`) instead of one per row, and does not normalize embeddings.
    """
    # oneDNN reads it once, at its first product.
    os.environ.setdefault(PRIMITIVE_CACHE, PRIMITIVES_KEPT)
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.model_card import SentenceTransformerModelCardData
    from sentence_transformers.sentence_transformer.modules import InputModule

    module, description = _build_frozen(folder), describe(folder)

    class Embedder(InputModule):  # type: ignore[misc]  # not type-checked here
        def __init__(self) -> None:
            super().__init__()
            self.module = module
            self.tokenizer = load_tokenizer(folder)

        def preprocess(self, inputs: Any, prompt: str | None = None, **_: Any) -> dict[str, Any]:
            ids, mask = encode_batch(self.tokenizer, [(prompt or "") + text for text in inputs])
            return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}

        def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
            hidden, embedding = self.module(features["input_ids"], features["attention_mask"])
            return {**features, "token_embeddings": hidden, "sentence_embedding": embedding}

        def get_embedding_dimension(self) -> int:
            return int(self.module.body.config.hidden_size)

        def save(self, output_path: str, *_: Any, **__: Any) -> None:
            raise NotImplementedError("save_torch_model writes the trained weights")

    class PackedEmbedder(Embedder):
        def __init__(self) -> None:
            super().__init__()
            self.tokenizer.no_padding()

        def preprocess(self, inputs: Any, prompt: str | None = None, **_: Any) -> dict[str, Any]:
            rows = self.tokenizer.encode_batch_fast([(prompt or "") + text for text in inputs])
            return dict(pack([row.ids for row in rows], self.module.body.config.pad_token_id))

        def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
            hidden = run_packed(self.module.body, features)
            return {**features, "token_embeddings": hidden, "sentence_embedding": pool(hidden, features, description.pooling)}

    return SentenceTransformer(
        modules=[PackedEmbedder() if packed else Embedder()],
        device="cpu",
        prompts=description.prompts.model_dump(),
        # Without it the card asks the hub for the base model's name.
        model_card_data=SentenceTransformerModelCardData(local_files_only=True),
    )


def _build_frozen(folder: Path) -> Any:
    import torch

    module = build_module(folder)
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    module.body.embeddings.requires_grad_(False)
    module.body.register_forward_hook(_widen)
    return module


def torch_body(model: SentenceTransformer) -> Any:
    """The transformer inside a model from `build_trainable`."""
    return model[0].module.body


def use_bf16(precision: Literal["auto", "fp32", "bf16"], machine: Machine) -> bool:
    """Whether to compute in bf16; refused on a CPU that would emulate it."""
    if precision == "bf16" and not machine.has_bf16:
        raise StepError("precision bf16: this CPU has no bf16 products, so torch would emulate them; set precision to auto or fp32")
    return precision == "bf16" or (precision == "auto" and machine.has_bf16)


def _widen(body: Any, arguments: Any, output: Any) -> Any:
    """Pool in float32: a mean over tokens in bf16 would lose another 8 bits."""
    output.last_hidden_state = output.last_hidden_state.float()
    return output
