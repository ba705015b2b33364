"""Proof that an exported folder loads in the libraries that people use, and gives the same vectors there."""
