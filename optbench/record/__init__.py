"""Records of runs, and what they imply.

In: the measurements of a run. Out: the immutable `Record`; the verdict against the recipe's targets; comparisons and regression gates
between records; the audit of an exported folder.
"""
