"""Figures as files."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from optbench.errors import OptbenchError

if TYPE_CHECKING:
    import altair as alt

__all__ = ["require_plots", "save_figure"]

# Pixels of an exported figure without its labels: a README's column is about 800 wide.
FIGURE_WIDTH = 600


def require_plots() -> None:
    """Raise an OptbenchError if the plotting libraries are not installed."""
    try:
        import altair  # noqa: F401
        import jinja2  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise OptbenchError(f"figures and pages need {error.name}, which is not installed; run pip install 'optbench[report]'") from error


def save_figure(chart: "alt.LayerChart | alt.VConcatChart", path: Path) -> None:
    """Write a chart as .svg or .png, on white, for a README.

    Raises:
        OptbenchError: another extension, or the file cannot be written.
    """
    if path.suffix not in (".svg", ".png"):
        raise OptbenchError(f"{path}: unknown extension; expected .svg or .png")
    import altair as alt

    options: dict[str, Any] = {"scale_factor": 2} if path.suffix == ".png" else {}
    parts = chart.vconcat if isinstance(chart, alt.VConcatChart) else [chart]
    for part in parts:
        part.width = FIGURE_WIDTH
    chart = chart.configure_view(stroke=None).configure_axisY(labelLimit=300).configure_axisX(labelOverlap="greedy", labelSeparation=6)
    try:
        chart.save(str(path), format=path.suffix[1:], **options)
    except OSError as error:
        raise OptbenchError(f"{path}: cannot be written: {error.strerror}; name another file") from error
