"""What structured pruning and vocabulary trimming share.

In: a checkpoint, calibration texts, a budget. Out: the heads, feed-forward units and vocabulary rows that remain, with refitted
weights.
"""
