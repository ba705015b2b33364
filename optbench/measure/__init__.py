"""Measuring.

In: artifacts with the engines that open them, and judged texts. Out: latency, accuracy, fidelity, stability and memory as frozen results
with intervals. Timed code runs in fresh processes, and candidates take turns.
"""
