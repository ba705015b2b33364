"""Figures of records: Vega-Lite charts by Altair, for the page and as SVG or PNG.

In: records, headlines, rows of peers. Out: charts, or None where a record has nothing to draw.
A record's text appears only in data, never in field names or expressions, so that untrusted text is not evaluated.
"""

from optbench.report.plots.lengths import latency_plot
from optbench.report.plots.load import load_plot
from optbench.report.plots.plane import pareto_front, plane_plot
from optbench.report.plots.queries import query_changes, query_plot
from optbench.report.plots.recipes import headline_plot, peers_plot, recipes_plot
from optbench.report.plots.save import require_plots, save_figure
from optbench.report.plots.steps import accuracy_plot, tradeoff_plot, waterfall_plot

__all__ = [
    "accuracy_plot",
    "headline_plot",
    "latency_plot",
    "load_plot",
    "pareto_front",
    "peers_plot",
    "plane_plot",
    "query_changes",
    "query_plot",
    "recipes_plot",
    "require_plots",
    "save_figure",
    "tradeoff_plot",
    "waterfall_plot",
]
