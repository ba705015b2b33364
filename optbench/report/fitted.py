"""Tables on a terminal: prose wraps, figures do not, and a table too wide for the screen continues below."""

from collections.abc import Sequence

from rich import box as boxes
from rich.cells import cell_len
from rich.console import JustifyMethod, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from optbench.record.verdict import Outcome
from optbench.report.table import Table, is_text_column
from optbench.report.text import printable

__all__ = ["fit_columns", "to_rich"]

# A column with a longer cell is prose or paths, and wraps down to the second width.
PROSE_CELLS, PROSE_CELLS_MIN = 32, 24
GAP = 2

_STYLES = {Outcome.PASS: "green", Outcome.FAIL: "red", Outcome.INCONCLUSIVE: "yellow"}


def fit_columns(widths: Sequence[int], limit: int) -> list[list[int]]:
    """Split columns of these widths into parts of at most `limit` cells; every part starts with the first column.

    Returns:
        The column indices of each part, without the first. A column too wide for a line is a part of its own.
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
    """Title, one or more tables of at most `limit` cells per line, and note."""
    cells = [[printable(cell) for cell in line] for line in (table.columns, *table.rows)]
    widths = [max(cell_len(line[index]) for line in cells) for index in range(len(table.columns))]
    least = [PROSE_CELLS_MIN if width > PROSE_CELLS else width for width in widths]
    shown: list[RenderableType] = [Text(printable(table.title), style="bold")]
    for number, part in enumerate(fit_columns(least, limit)):
        rich = RichTable(box=boxes.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        for index in (0, *part):
            justify: JustifyMethod = "left" if is_text_column(table, index) else "right"
            prose = least[index] < widths[index]
            rich.add_column(Text(cells[0][index]), justify=justify, no_wrap=not prose, overflow="fold", min_width=least[index])
        for line in cells[1:]:
            style = next((style for outcome, style in _STYLES.items() if line[-1] == outcome), None)
            rich.add_row(*(Text(line[index]) for index in (0, *part)), style=style)
        shown += [Text(), rich] if number else [rich]
    if table.note:
        shown.append(Text(printable(table.note), style="dim"))
    return shown
