"""Recipes: one base model, the steps, the targets.

In: a YAML file, or a model to write one for. Out: a frozen `Recipe`, or an error that lists every problem with its file, line and key.
"""
