"""Measuring: latency, accuracy, fidelity, footprint. A measurement is a record that nobody edits."""
