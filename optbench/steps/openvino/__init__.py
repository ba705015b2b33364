"""What steps on OpenVINO graphs share.

In: an IR and its weights. Out: the weight MatMuls and embedding tables found in it, int4 weights by GPTQ, 8-bit tables, the saved IR.
"""
