"""Loaders: the libraries that can read an exported folder.

In: an artifact. Out: whether each library computes the artifact's own vectors from it, the code that a user needs, and the folder with a
second graph for libraries that read the other format.
"""
