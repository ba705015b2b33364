"""Base models: where the weights come from.

In: the recipe's `base:` entry, which names a hub, a folder, an installed package or random weights.
Out: a sealed checkpoint that agrees with the recipe, with its origin in `base.json`; and what its license allows.
"""
