"""Fusions: named rewrites of an ONNX graph, one file each, that `fuse_graph` applies and prices."""

from collections.abc import Mapping

from optbench.steps.onnx.fusions.attention import Attention
from optbench.steps.onnx.fusions.base import Fusion, Outcome
from optbench.steps.onnx.fusions.bias_gelu import BiasGelu
from optbench.steps.onnx.fusions.embed_layer_norm import EmbedLayerNorm
from optbench.steps.onnx.fusions.packed_qkv import PackedQkv
from optbench.steps.onnx.fusions.skip_layer_norm import SkipLayerNorm

__all__ = ["FUSIONS", "Fusion", "Outcome"]

FUSIONS: Mapping[str, Fusion] = {
    fusion.name: fusion for fusion in (Attention(), PackedQkv(), BiasGelu(), SkipLayerNorm(), EmbedLayerNorm())
}
"""Every fusion, by the name a recipe calls it."""
