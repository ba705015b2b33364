"""Records: what was measured, and what follows from it.

In: the measurements of a run. Out: `Record`, which nobody edits; the verdict against the recipe's targets; comparisons and regression gates
between records; whether a folder's records are of its own bytes.
"""
