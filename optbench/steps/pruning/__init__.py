"""Structured pruning: what to remove from a body, within a budget, and how the rest makes up for it."""
