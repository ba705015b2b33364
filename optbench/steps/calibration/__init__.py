"""What quantizing steps share: calibration texts as token ids, and SmoothQuant.

In: texts, a model. Out: model inputs, input ranges and smoothing factors.
"""
