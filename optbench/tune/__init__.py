"""Search over recipes (planned).

In: a base, targets and a budget. Out: a recipe.
"""
