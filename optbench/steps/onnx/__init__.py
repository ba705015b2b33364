"""What steps on ONNX graphs share.

In: a graph. Out: the graph with fused operators or quantized weights, and a report of what was matched and refused.
"""
