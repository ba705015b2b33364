"""Measurements of artifacts: latency, accuracy, fidelity, stability and memory.

In: artifacts with the engines that open them, and judged texts. Out: frozen results with
confidence intervals. Timed code runs in fresh processes, and candidates are timed in alternation.
"""
