"""Artifacts: sealed folders that never change.

In: a folder that a step or a base filled. Out: `Artifact`, whose manifest names the sha256 of every file; or an error that says which
file is not as it was sealed. Graphs are checked here too, before any engine opens one.
"""
