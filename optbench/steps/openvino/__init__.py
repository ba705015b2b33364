"""What steps on OpenVINO graphs share.

In: an IR, its weights. Out: patterns found in it, and weights rounded to 4 bits by GPTQ.
"""
