"""Fusions: named rewrites of an ONNX graph, one file each, which `fuse_graph` applies and times.

In: a graph, and the body it computes. Out: the graph with groups of operators replaced by one each, the number of places rewritten,
and a reason for each place left alone.
"""

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
"""Every fusion by its name in a recipe."""
