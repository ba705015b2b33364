"""Rewrite a graph so that it rounds the same however it is compiled.

OpenVINO compiles one graph differently for a fixed shape and for any shape, and other loaders compile it for any shape. Most operators
of the two are the same kernels. Two differ, each in the last bit of a float; where that bit decides which integer an activation rounds
to, the next layers see another value, and the embedding moves (cosine .9995 on all-MiniLM-L6-v2).

    1. (word + token type) + position: for a fixed shape, the sum of the two constants is computed first.
       -> word + (position + token type), one table.
    2. FakeQuantize of an activation by scale s and zero point z: for any shape, the kernel of the eltwise node computes x * s + z in
       one rounding; for a fixed shape, snippets multiply and add in two.
       -> the scale is multiplied in before, and the FakeQuantize keeps the scale 1: x * 1 is exact, so one rounding is left.
    3. FakeQuantize with the zero point 128: for a fixed shape, snippets convert to int8 without adding the zero point.
       -> the zero point 127, which is computed as case 2.

A FakeQuantize that OpenVINO fuses into the product before it is the same kernel in both, and stays.

Source: openvinotoolkit/openvino, src/common/snippets/src/pass/fq_decomposition.cpp and
src/plugins/intel_cpu/src/transformations/transformation_pipeline.cpp (MainSnippets: elementwise operators of dynamic shape are skipped).
"""

from typing import TYPE_CHECKING

from optbench.steps.openvino.graph import constant_behind

if TYPE_CHECKING:
    import openvino as ov

__all__ = ["fold_token_types", "set_unit_scales"]

# With this zero point OpenVINO stores int8 instead of uint8, and snippets do not add it.
SIGNED_ZERO_POINT = 128
# NNCF makes zero points whole, to the precision of a float32 range.
WHOLE = 1e-3


def fold_token_types(model: "ov.Model") -> bool:
    """Add the constant row of token types to the table of positions (case 1); returns whether the graph had both."""
    import numpy as np
    import openvino.opset13 as operators

    for outer in model.get_ordered_ops():
        if outer.get_type_name() != "Add":
            continue
        inner, lookup = (outer.input_value(port).get_node() for port in range(2))
        if inner.get_type_name() != "Add" or lookup.get_type_name() != "Gather" or len(inner.output(0).get_target_inputs()) != 1:
            continue
        row, table = inner.input_value(1).get_node(), lookup.input_value(0).get_node()
        if {row.get_type_name(), table.get_type_name()} != {"Constant"} or len(lookup.output(0).get_target_inputs()) != 1:
            continue
        if len(table.output(0).get_target_inputs()) != 1 or table.data.ndim != 2 or row.data.size != table.data.shape[1]:
            continue
        folded = operators.constant(np.asarray(table.data + row.data.reshape(-1), dtype=table.data.dtype))
        folded.set_friendly_name(table.get_friendly_name())
        lookup.input(0).replace_source_output(folded.output(0))
        outer.input(0).replace_source_output(inner.input_value(0))
        return True
    return False


def set_unit_scales(model: "ov.Model") -> int:
    """Give each FakeQuantize of an activation the scale 1 (cases 2 and 3); returns how many were rewritten.

    The integers and what they stand for stay the same, except that the zero point 128 becomes 127.
    """
    quantizers = [node for node in model.get_ordered_ops() if node.get_type_name() == "FakeQuantize"]
    return sum(_set_unit_scale(quantizer) for quantizer in quantizers)


def _set_unit_scale(quantizer: "ov.Node") -> bool:
    import numpy as np
    import openvino.opset13 as operators

    source = quantizer.input_value(0)
    bounds = [quantizer.input_value(port).get_node() for port in range(1, 5)]
    shape = source.get_partial_shape()
    if shape.rank.is_dynamic or shape[-1].is_dynamic or _is_fused_into_product(source.get_node()):
        return False
    width = shape[-1].get_length()
    if constant_behind(source)[0] is not None or any(bound.get_type_name() != "Constant" or bound.data.size != 1 for bound in bounds):
        return False
    input_low, input_high, output_low, output_high = (float(bound.data.item()) for bound in bounds)
    largest = quantizer.get_attributes()["levels"] - 1
    step, output_step = (input_high - input_low) / largest, (output_high - output_low) / largest
    zero = round(-input_low / step)
    if abs(-input_low / step - zero) > WHOLE:
        return False
    shift = int(zero == SIGNED_ZERO_POINT)
    factors = np.full([1] * (shape.rank.get_length() - 1) + [width], 1 / step)
    smoothing = source.get_node()
    # A scale that is there already, such as SmoothQuant's, takes the factor: no operator is added. One number instead of a row
    # would not do: OpenVINO folds it back into the FakeQuantize.
    if smoothing.get_type_name() == "Multiply" and len(source.get_target_inputs()) == 1:
        scale = smoothing.input_value(1).get_node()
        if scale.get_type_name() == "Constant" and scale.data.size == width:
            factors, source = scale.data.astype(np.float64) / step, smoothing.input_value(0)
    scaled = operators.multiply(source, operators.constant(factors.astype(np.float32)))
    scaled.set_friendly_name(f"{quantizer.get_friendly_name()}/scale")
    quantizer.input(0).replace_source_output(scaled.output(0))
    zero -= shift
    ranges = (-zero, largest - zero, output_low + shift * output_step, output_high + shift * output_step)
    for port, (bound, value) in enumerate(zip(bounds, ranges, strict=True), start=1):
        new = operators.constant(np.full(bound.data.shape, value, dtype=np.float32))
        quantizer.input(port).replace_source_output(new.output(0))
    return True


def _is_fused_into_product(node: "ov.Node") -> bool:
    """Whether a FakeQuantize of this node's output runs inside the kernel of a weight MatMul: after its bias, or its activation."""
    if node.get_type_name() == "Multiply":
        node = node.input_value(0).get_node()
    if node.get_type_name() == "Gelu":
        node = node.input_value(0).get_node()
    if node.get_type_name() == "Add":
        node = node.input_value(0).get_node()
    return str(node.get_type_name()) == "MatMul"
