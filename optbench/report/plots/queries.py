"""How the single queries changed, behind the mean that the verdict is about."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optbench.errors import MeasureError
from optbench.record.record import Record
from optbench.report.headline import worst_loss
from optbench.report.plots.style import BASELINE, RESULT, chart_of

if TYPE_CHECKING:
    import altair as alt

__all__ = ["QueryChanges", "query_changes", "query_plot"]

HEIGHT = 280
WIDTHS, BINS_MAX = (0.01, 0.02, 0.05, 0.1, 0.2), 24


@dataclass(frozen=True)
class QueryChanges:
    """What became of each query of the task that lost most: its metric under the result, less under the base.

    Attributes:
        same: number of queries whose value is the same.
        changes: of all others.
    """

    task: str
    metric: str
    same: int
    changes: tuple[float, ...]

    @property
    def summary(self) -> str:
        """How many queries are worse, better and unchanged."""
        worse = sum(change < 0 for change in self.changes)
        return (
            f"{self.metric} on {self.task}: {worse} queries worse, {len(self.changes) - worse} better, {self.same} unchanged (not drawn)."
        )


def query_changes(record: Record) -> QueryChanges | None:
    """The changes of the task that lost most, on the index that is judged; None without accuracy, or if its metric has no queries."""
    loss = worst_loss(record) if record.weights == "real" else None
    if loss is None:
        return None
    base = next(result for result in record.points[0].accuracy if result.task == loss.task)
    try:
        result = next(each for each in record.final.accuracy if each.task == loss.task).on_index(record.recipe.targets.index)
    except MeasureError:
        return None
    if not base.n_documents:
        # Values of Spearman's correlation are each pair's share in it, not a pair's own accuracy.
        return None
    before, after = base.metrics[base.main_metric], result.metrics[base.main_metric]
    differences = [after[query] - value for query, value in before.items() if query in after]
    changes = tuple(each for each in differences if abs(each) > 1e-9)
    return QueryChanges(loss.task, loss.metric, len(differences) - len(changes), changes)


def query_plot(record: Record) -> "alt.LayerChart | None":
    """A histogram of the queries that changed; None if none did, or nothing was measured."""
    import altair as alt

    found = query_changes(record)
    if found is None or not found.changes:
        return None
    reach = max(map(abs, found.changes))
    width = next((width for width in WIDTHS if 2 * math.ceil(reach / width) <= BINS_MAX), WIDTHS[-1])
    half = math.ceil(round(reach / width, 9))
    counts = dict.fromkeys(range(-half, half), 0)
    for change in found.changes:
        # A bin holds its end that is farther from 0.
        index = math.ceil(round(change / width, 9)) - 1 if change > 0 else math.floor(round(change / width, 9))
        counts[index] += 1
    rows = [
        {"low": index * width, "high": (index + 1) * width, "count": count, "text": f"{index * width:+.2f} to {(index + 1) * width:+.2f}"}
        for index, count in counts.items()
    ]
    scale = alt.Scale(domain=[-half * width, half * width], nice=False)
    # The metric's name is one of ours or a library's, and stays in the data all the same.
    x = alt.X("low:Q", title="change of the query's metric (right is better)", scale=scale, bin="binned")
    bars = (
        chart_of(rows)
        .mark_bar(color=RESULT)
        .encode(
            x=x,
            x2="high:Q",
            y=alt.Y("count:Q", title="queries", axis=alt.Axis(tickMinStep=1)),
            tooltip=[alt.Tooltip("text:N"), alt.Tooltip("count:Q")],
        )
    )
    zero = chart_of([{"low": 0.0}]).mark_rule(strokeDash=[5, 4], strokeWidth=2, color=BASELINE).encode(x="low:Q")
    return alt.layer(bars, zero).properties(width="container", height=HEIGHT)
