"""A table on a terminal: figures are never broken over lines, prose is, and a table too wide for the screen continues below itself."""

from collections.abc import Sequence

from rich import box as boxes
from rich.cells import cell_len
from rich.console import JustifyMethod, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from optbench.record.verdict import Outcome
from optbench.report.table import Table, holds_words
from optbench.report.text import printable

__all__ = ["fit_columns", "to_rich"]

# A column with a longer cell holds prose or paths, which read well over several lines down to the second width.
PROSE_CELLS, PROSE_CELLS_MIN = 32, 24
GAP = 2

_STYLES = {Outcome.PASS: "green", Outcome.FAIL: "red", Outcome.INCONCLUSIVE: "yellow"}


def fit_columns(widths: Sequence[int], limit: int) -> list[list[int]]:
    """Share columns out over as many parts as it takes for each to fit; the first column leads every part.

    Args:
        widths: cells that each column needs; at least one column.
        limit: cells of a line.

    Returns:
        the columns of each part by index, the first left out. A column too wide for a line has a part of its own.
    """
    parts: list[list[int]] = [[]]
    used = widths[0]
    for index in range(1, len(widths)):
        if parts[-1] and used + GAP + widths[index] > limit:
            parts.append([])
            used = widths[0]
        parts[-1].append(index)
        used += GAP + widths[index]
    return parts


def to_rich(table: Table, limit: int) -> list[RenderableType]:
    """For a terminal of `limit` cells a line: title, one table or, where the columns do not fit side by side, several, and the note."""
    cells = [[printable(cell) for cell in line] for line in (table.columns, *table.rows)]
    widths = [max(cell_len(line[index]) for line in cells) for index in range(len(table.columns))]
    least = [PROSE_CELLS_MIN if width > PROSE_CELLS else width for width in widths]
    shown: list[RenderableType] = [Text(printable(table.title), style="bold")]
    for number, part in enumerate(fit_columns(least, limit)):
        rich = RichTable(box=boxes.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        for index in (0, *part):
            justify: JustifyMethod = "left" if holds_words(table, index) else "right"
            prose = least[index] < widths[index]
            rich.add_column(Text(cells[0][index]), justify=justify, no_wrap=not prose, overflow="fold", min_width=least[index])
        for line in cells[1:]:
            style = next((style for outcome, style in _STYLES.items() if line[-1] == outcome), None)
            rich.add_row(*(Text(line[index]) for index in (0, *part)), style=style)
        shown += [Text(), rich] if number else [rich]
    if table.note:
        shown.append(Text(printable(table.note), style="dim"))
    return shown
