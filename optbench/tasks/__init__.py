"""Accuracy tasks: texts, queries and human judgments."""
