"""Base models: where the weights come from.

In: the recipe's `base:` entry, which names a hub, a folder, an installed package or random weights. Out: a sealed checkpoint that says
what the recipe says, with its origin in `base.json`.
"""
