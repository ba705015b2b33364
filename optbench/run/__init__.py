"""Runs: a recipe becomes an artifact with its evidence.

In: a recipe and a cache folder. Out: each step made in a process of its own or found in the cache, everything measured, and the exported
folder. `plan` prints the items that `apply` executes.
"""
