"""Artifacts: sealed folders that never change.

In: a folder that a step or a base filled.
Out: an `Artifact`, whose manifest lists the sha256 of every file, or an error that names the files that changed since. Also what a graph
file may ask of the machine that opens it.
"""
