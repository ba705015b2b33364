"""The weighted mean of accuracy changes over tasks, with its interval."""

import math
from collections.abc import Sequence

from optbench.errors import MeasureError
from optbench.measure.accuracy import AccuracyResult
from optbench.measure.statistics import Change, paired_relative_change

__all__ = ["weighted_mean_change"]


def weighted_mean_change(pairs: Sequence[tuple[AccuracyResult, AccuracyResult]]) -> Change:
    """The mean of the relative changes of the tasks' main metrics, weighted by task.

    Each pair is the base's result and the candidate's on one task. Tasks with the same query ids, such as the languages of a parallel
    corpus, have correlated losses: their queries are resampled together. Other tasks are independent, and their intervals are combined
    by squares.

    Returns:
        `n` counts queries; those of a parallel corpus count once.

    Raises:
        MeasureError: no pairs, a pair of different tasks, or a base with a mean of zero or less.

    Source: Zou and Donner 2008, "Construction of confidence limits about effect measures", Statistics in Medicine 27(10),
        equation 6 for a sum.
    """
    if not pairs:
        raise MeasureError("mean over tasks: no task was measured on both models; name the same tasks for both")
    groups: dict[frozenset[str], list[tuple[AccuracyResult, AccuracyResult]]] = {}
    for base, candidate in pairs:
        if base.task != candidate.task:
            raise MeasureError(f"mean over tasks: {base.task} cannot be compared with {candidate.task}; measure both models on both")
        groups.setdefault(frozenset(base.metrics[base.main_metric]), []).append((base, candidate))
    total = sum(base.weight for base, _ in pairs)
    changes = [(sum(base.weight for base, _ in group) / total, _change_together(group)) for group in groups.values()]
    point = sum(share * change.point for share, change in changes)
    below = math.hypot(*(share * (change.point - change.low) for share, change in changes))
    above = math.hypot(*(share * (change.high - change.point) for share, change in changes))
    confidence = changes[0][1].confidence
    return Change(point=point, low=point - below, high=point + above, confidence=confidence, n=sum(change.n for _, change in changes))


def _change_together(group: Sequence[tuple[AccuracyResult, AccuracyResult]]) -> Change:
    """The weighted mean change of tasks with the same queries.

    Each task's values are scaled so that its base's values sum to its weight. The relative change of the summed values is then the
    weighted mean of the tasks' changes, and each query is one observation over all languages.
    """
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    for base, candidate in group:
        old, new = base.metrics[base.main_metric], candidate.metrics[base.main_metric]
        if old.keys() != new.keys():
            raise MeasureError(f"mean over tasks: {base.task} was measured on other queries; measure both models on the same")
        if sum(old.values()) <= 0:
            raise MeasureError(f"mean over tasks: the base's mean on {base.task} is zero or less, so nothing can be lost; check the base")
        scale = base.weight / sum(old.values())
        for query, value in old.items():
            before[query] = before.get(query, 0.0) + scale * value
            after[query] = after.get(query, 0.0) + scale * new[query]
    return paired_relative_change(before, after)
