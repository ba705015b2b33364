"""Tables on a terminal: prose wraps, figures do not, and the rows of a table too wide for the screen become lists."""

from collections.abc import Sequence

from rich import box as boxes
from rich.cells import cell_len
from rich.console import JustifyMethod, RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from optbench.record.verdict import Outcome
from optbench.report.table import Table, is_text_column
from optbench.report.text import printable

__all__ = ["STYLES", "column_widths", "pack", "to_rich"]

# A column with a longer cell is prose or paths, and wraps down to the second width.
PROSE_CELLS, PROSE_CELLS_MIN = 32, 24
GAP = 2
BETWEEN = "   "

STYLES = {Outcome.PASS: "green", Outcome.FAIL: "red", Outcome.INCONCLUSIVE: "yellow"}


def column_widths(cells: Sequence[Sequence[str]], limit: int) -> list[int] | None:
    """The least width of each column of a table that fits `limit` cells; None where no table does.

    Figures keep their width. Prose wraps and, where that is not enough, the first column between its words.
    """
    widths = [max(cell_len(line[index]) for line in cells) for index in range(len(cells[0]))]
    least = [PROSE_CELLS_MIN if width > PROSE_CELLS else width for width in widths]
    gaps = GAP * (len(widths) - 1)
    if sum(least) + gaps > limit:
        words = max(cell_len(word) for line in cells for word in line[0].split() or [""])
        least[0] = max(words, limit - gaps - sum(least[1:]))
    return least if sum(least) + gaps <= limit else None


def pack(pairs: Sequence[tuple[str, str]], limit: int) -> list[str]:
    """`column: value` for each pair, as many on a line as fit `limit` cells; a pair is only broken by a narrower screen."""
    lines: list[str] = []
    for column, value in pairs:
        pair = f"{column}: {value}" if column else value
        if lines and cell_len(lines[-1]) + len(BETWEEN) + cell_len(pair) <= limit:
            lines[-1] += BETWEEN + pair
        else:
            lines.append(pair)
    return lines


def to_rich(table: Table, limit: int) -> list[RenderableType]:
    """Title, table and note; rows that no table of `limit` cells holds are each a few lines, every figure with its column's name."""
    cells = [[printable(cell) for cell in line] for line in (table.columns, *table.rows)]
    least = column_widths(cells, limit)
    shown: list[RenderableType] = [Text(printable(table.title), style="bold")]
    shown += [_grid(table, cells, least)] if least is not None else _rows(cells, limit)
    if table.note:
        shown.append(Text(printable(table.note), style="dim"))
    return shown


def _style(line: Sequence[str]) -> str:
    return next((style for outcome, style in STYLES.items() if line[-1] == outcome), "")


def _grid(table: Table, cells: Sequence[Sequence[str]], least: Sequence[int]) -> RichTable:
    rich = RichTable(box=boxes.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for index, width in enumerate(least):
        justify: JustifyMethod = "left" if is_text_column(table, index) else "right"
        wraps = width < max(cell_len(line[index]) for line in cells)
        rich.add_column(Text(cells[0][index]), justify=justify, no_wrap=not wraps, overflow="fold", min_width=width)
    for line in cells[1:]:
        rich.add_row(*map(Text, line), style=_style(line))
    return rich


def _rows(cells: Sequence[Sequence[str]], limit: int) -> list[RenderableType]:
    columns, *rows = cells
    # Where the first column repeats, the second tells the rows apart.
    names = 1 if len({line[0] for line in rows}) == len(rows) or len(columns) < 3 else 2
    shown: list[RenderableType] = []
    for line in rows:
        pairs = [(column, value) for column, value in zip(columns[names:], line[names:], strict=True) if value]
        style = _style(line)
        shown.append(Text(", ".join(line[:names]) or columns[0], style=f"{style} underline".strip()))
        shown += [Padding(Text(packed, style=style, overflow="fold"), (0, 0, 0, GAP), expand=False) for packed in pack(pairs, limit - GAP)]
    return shown
