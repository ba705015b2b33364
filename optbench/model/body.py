"""The shape of a transformer encoder, without its weights: what a recipe's `body:` and a checkpoint's config.json say."""

from types import MappingProxyType
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from optbench.artifact.manifest import LayerSize
from optbench.machine.frozen import Frozen

__all__ = ["BODY_KEYS", "OPTIONAL_BODY_KEYS", "Body"]

# Fields of `Body` and their keys in config.json.
BODY_KEYS = MappingProxyType(
    {
        "layers": "num_hidden_layers",
        "hidden": "hidden_size",
        "heads": "num_attention_heads",
        "feed_forward": "intermediate_size",
        "vocabulary": "vocab_size",
        "positions": "max_position_embeddings",
    }
)
OPTIONAL_BODY_KEYS = MappingProxyType(
    {
        "type_vocabulary": "type_vocab_size",
        "layer_norm_epsilon": "layer_norm_eps",
        "pad_id": "pad_token_id",
        # optbench's own, for a body whose layers differ; transformers has no keys for it.
        "layer_heads": "layer_num_attention_heads",
        "layer_feed_forward": "layer_intermediate_size",
        "position_bias_heads": "layer_position_bias_heads",
    }
)

Count = Annotated[int, Field(ge=1, le=1048576)]


class Body(Frozen):
    """The shape of a transformer encoder."""

    architecture: Literal["BertModel", "XLMRobertaModel", "RobertaModel", "MPNetModel"] = Field(description="The transformers class.")
    layers: int = Field(ge=1, le=256, description="Transformer layers.")
    hidden: int = Field(ge=1, le=65536, description="Width of the residual stream; the embedding's dimension.")
    heads: int = Field(ge=1, le=1024, description="Attention heads of a layer.")
    feed_forward: int = Field(ge=1, le=1048576, description="Width of the feed-forward layer.")
    vocabulary: int = Field(ge=1, le=10_000_000, description="Rows of the embedding table.")
    positions: int = Field(ge=1, le=1_000_000, description="Rows of the position table.")
    type_vocabulary: int = Field(default=1, ge=1, le=64, description="Rows of the token type table.")
    layer_norm_epsilon: float = Field(default=1e-12, gt=0, lt=1, description="Added to the variance that LayerNorm divides by.")
    pad_id: int = Field(default=0, ge=0, description="The padding token's id; RoBERTa-like models count positions from it.")
    layer_heads: tuple[Count, ...] | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="Heads of each layer where layers differ; each head is hidden / heads wide.",
    )
    layer_feed_forward: tuple[Count, ...] | None = Field(
        default=None, exclude_if=lambda value: value is None, description="Feed-forward width of each layer where layers differ."
    )
    position_bias_heads: tuple[tuple[int, ...], ...] | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="MPNet with fewer heads: the columns of the shared position bias that each layer's heads read.",
    )

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        for name, sizes, most in (
            ("layer_heads", self.layer_heads, self.heads),
            ("layer_feed_forward", self.layer_feed_forward, self.feed_forward),
        ):
            if sizes is not None and (len(sizes) != self.layers or max(sizes) > most):
                raise ValueError(f"{name} {list(sizes)}: expected {self.layers} sizes of at most {most}, one per layer")
        columns = self.position_bias_heads
        if columns is not None and (
            tuple(len(layer) for layer in columns) != self.heads_by_layer
            or any(not 0 <= column < self.heads for layer in columns for column in layer)
        ):
            raise ValueError(f"position_bias_heads: expected one column below {self.heads} for each head of each layer")
        return self

    @property
    def is_pruned(self) -> bool:
        """Whether layers differ, or have fewer heads than hidden / head size: transformers alone cannot build such a body."""
        return self.layer_heads is not None or self.layer_feed_forward is not None

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads

    @property
    def heads_by_layer(self) -> tuple[int, ...]:
        """Attention heads of each layer."""
        return self.layer_heads or (self.heads,) * self.layers

    @property
    def feed_forward_by_layer(self) -> tuple[int, ...]:
        """Feed-forward width of each layer."""
        return self.layer_feed_forward or (self.feed_forward,) * self.layers

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Heads and feed-forward width of each layer."""
        return tuple(zip(self.heads_by_layer, self.feed_forward_by_layer, strict=True))

    @property
    def layer_sizes(self) -> tuple[LayerSize, ...]:
        """The manifest's entry for the layers of a pruned body; empty where layers are alike."""
        if not self.is_pruned:
            return ()
        return tuple(LayerSize(heads=heads, feed_forward=feed_forward) for heads, feed_forward in self.sizes)

    @property
    def weights(self) -> int:
        """Weights in matrix products: per layer four matrices of attention and two of the feed-forward, without the tables."""
        attention = 4 * self.head_size * sum(self.heads_by_layer)
        return self.hidden * (attention + 2 * sum(self.feed_forward_by_layer))

    def multiply_adds(self, tokens: int, batch: int = 1) -> int:
        """Multiply-adds of a batch: one per weight and token, and two per element of a head and pair of tokens (scores and values)."""
        return batch * tokens * (self.weights + 2 * tokens * self.head_size * sum(self.heads_by_layer))

    @property
    def position_limit(self) -> int:
        """The longest input, in tokens, that the position table holds; below 1 where it has no room for any."""
        # RoBERTa-like models spend the first pad_id + 1 rows of the position table on padding.
        return self.positions - (0 if self.architecture == "BertModel" else self.pad_id + 1)

    @property
    def parameters(self) -> int:
        """Parameters of the body with its tables, without the pooler."""
        tables = (self.vocabulary + self.positions + self.type_vocabulary + 2) * self.hidden
        biases = 3 * self.head_size * sum(self.heads_by_layer) + sum(self.feed_forward_by_layer) + 6 * self.hidden * self.layers
        return tables + self.weights + biases
