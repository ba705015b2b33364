"""The HTML page: records in one file that works offline, on a phone and with a screen reader.

Text from records is untrusted: templates escape it, the figures' data is JSON, and the content security policy allows only the page's
own scripts.
"""

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optbench
from optbench.errors import OptbenchError
from optbench.record.record import Record
from optbench.record.verdict import judge
from optbench.report import plots
from optbench.report.contents import command_of, record_tables
from optbench.report.headline import Headline, headline_of, headline_tables, title_of
from optbench.report.peers import PeerRun, peer_tables, speedup_rows
from optbench.report.table import Table, is_text_column, verdict_table
from optbench.report.text import printable

if TYPE_CHECKING:
    import altair as alt

__all__ = ["Difference", "render_page", "require_plots", "save_figure"]

TEMPLATES = Path(__file__).parent / "templates"
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
PROSE_LENGTH = 48
# In characters: half the page's width, and a cell's padding.
HALF_WIDTH, CELL_PADDING = 84, 4
# Pixels of an exported figure without its labels: a README's column is about 800 wide.
FIGURE_WIDTH = 600
# Tables shown at first; the rest is collapsed.
FIRST_TABLES = 3


@dataclass(frozen=True)
class Difference:
    """The comparison of two or more records of one recipe, or why they cannot be compared."""

    recipe: str
    tables: Sequence[Table]
    notes: Sequence[str]
    command: str


@dataclass(frozen=True)
class Cell:
    """A table's cell; it sorts by the first number in its text."""

    text: str
    value: float | None
    classes: str


@dataclass(frozen=True)
class Column:
    """A table's column."""

    name: str
    number: bool


@dataclass(frozen=True)
class PageTable:
    """A table on the page."""

    id: str
    table: Table
    command: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    wide: bool


@dataclass(frozen=True)
class Figure:
    """A chart on the page."""

    id: str
    title: str
    caption: str
    command: str
    spec: dict[str, Any]
    wide: bool = False


@dataclass(frozen=True)
class Tile:
    """A figure in large print."""

    about: str
    value: str
    more: str


@dataclass(frozen=True)
class Part:
    """A section of the page."""

    id: str
    title: str
    short: str
    text: str = ""
    verdict: str = ""
    random: bool = False
    command: str = ""
    tiles: Sequence[Tile] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[PageTable] = ()
    more: Sequence[PageTable] = ()
    facts: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = field(default_factory=tuple)


def require_plots() -> None:
    """Raise an OptbenchError if the plotting libraries are not installed."""
    try:
        import altair  # noqa: F401
        import jinja2  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise OptbenchError(f"figures and pages need {error.name}, which is not installed; run pip install 'optbench[report]'") from error


def _printable_value(value: Any) -> Any:
    """Strip control characters from every string that a template inserts, except the page's own markup."""
    return printable(value) if type(value) is str else value


def _clean(value: Any) -> Any:
    """Strip control characters from a figure's data."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {key: _clean(each) for key, each in value.items()}
    return [_clean(each) for each in value] if isinstance(value, list) else value


class _Page:
    """Builds parts with unique ids."""

    def __init__(self) -> None:
        self._numbers = count(1)

    def id(self, kind: str) -> str:
        return f"{kind}-{next(self._numbers)}"

    def table(self, table: Table, command: str) -> PageTable:
        numbers = [not is_text_column(table, index) for index in range(len(table.columns))]
        rows = [[_cell(text, number) for text, number in zip(row, numbers, strict=True)] for row in table.rows]
        columns = [Column(name, number) for name, number in zip(table.columns, numbers, strict=True)]
        longest = [max(len(row[index]) for row in (table.columns, *table.rows)) for index in range(len(table.columns))]
        wide = sum(min(length, PROSE_LENGTH) + CELL_PADDING for length in longest) > HALF_WIDTH
        return PageTable(self.id("table"), table, command, columns, rows, wide)

    def figures(self, found: Sequence[tuple[str, str, "alt.LayerChart | None"]], command: str, *, wide: bool = False) -> list[Figure]:
        return [
            Figure(self.id("figure"), title, caption, command, _clean(chart.to_dict()), wide)
            for title, caption, chart in found
            if chart is not None
        ]


def _cell(text: str, number: bool) -> Cell:
    match = NUMBER.search(text) if number else None
    classes = "number" if number else "prose" if len(text) > PROSE_LENGTH else ""
    return Cell(text, float(match[0]) if match else None, classes)


def _record_part(page: _Page, record: Record, floor: Mapping[int, float]) -> Part:
    verdict = judge(record)
    command = command_of(record)
    waterfall = "Milliseconds after each step, with 95 % intervals. The dashed line is the fastest fp32 engine."
    accuracy = "Each task's metric against the base in torch fp32, with paired 95 % intervals. The dashed orange line is the allowed loss."
    plane = "Each step by its latency and by the task that lost most. Dashed: the recipe's targets. Stepped: the Pareto front."
    lengths = "Median latency by token length, both axes logarithmic."
    lengths += (
        " The floor is a lower bound for int8 weights on this machine."
        if floor
        else " The machine's floor is not known: pass the output of optbench probe --json with --probe."
    )
    figures = page.figures(
        [
            ("What each step bought", waterfall, plots.waterfall_plot(record)),
            ("What each step cost", accuracy, plots.accuracy_plot(record)),
            ("Accuracy over latency", plane, plots.plane_plot(record)),
            ("Latency by length", lengths, plots.latency_plot(record, floor)),
        ],
        command,
    )
    tables = [page.table(table, command) for table in (verdict_table(verdict), *record_tables(record))]
    machine = record.machine
    facts = [
        ("CPU", f"{machine.cpu}, {machine.architecture}, {machine.isa}" + (f", limited to {record.isa}" if record.isa else "")),
        ("threads", f"{record.threads} of {machine.usable_threads} usable, {machine.cores} physical cores"),
        ("memory", f"{machine.memory_bytes / 2**30:.0f} GiB"),
        ("system", machine.system),
        ("taken", record.created),
        ("optbench", record.optbench),
        ("libraries", ", ".join(f"{library} {version}" for library, version in record.libraries.items())),
        ("base", record.base),
        ("artifact sha256", record.final.artifact_sha256),
        ("recipe sha256", record.recipe_sha256),
    ]
    headline = headline_of(record)
    return Part(
        id=page.id("record"),
        title=title_of(record),
        short=f"{record.recipe.name} {record.created[:10]}",
        text=record.recipe.description,
        verdict=str(verdict.outcome).replace(" ", "-"),
        random=record.weights == "random",
        command=command,
        tiles=list(_tiles(headline)) if headline else [],
        figures=figures,
        tables=tables[:FIRST_TABLES],
        more=tables[FIRST_TABLES:],
        facts=facts,
        warnings=record.warnings,
    )


def _tiles(found: Headline) -> Iterator[Tile]:
    yield Tile(f"fp32, {found.tokens} tokens", f"{found.fp32_ms.point:.3g} ms", found.fp32)
    yield Tile("optimized", f"{found.optimized_ms.point:.3g} ms", f"{found.optimized_ms.low:.3g}..{found.optimized_ms.high:.3g} ms")
    yield Tile("speed-up", f"{found.speedup.point:.2f}x", f"{found.speedup.low:.2f}..{found.speedup.high:.2f}")
    if found.loss is not None:
        change = found.loss.change
        task = f"{found.loss.metric} {found.loss.task}" + (", synthetic" if found.loss.synthetic else "")
        yield Tile("largest loss", f"{100 * change.point:+.2f} %", f"{100 * change.low:+.2f}..{100 * change.high:+.2f}, {task}")
    yield Tile("size", f"{found.optimized_bytes / 1e6:.0f} MB", f"of {found.fp32_bytes / 1e6:.0f} MB")
    yield Tile("box", found.box, f"{found.threads} threads" + (f", {found.isa}" if found.isa else ""))


def _overview(page: _Page, records: Sequence[Record]) -> Part:
    command = "optbench report --table"
    caption = "Speed-up at the reading length over the fastest fp32 engine of the same run, with its 95 % interval."
    figures = page.figures(
        [("Speed-up by recipe", caption, plots.headline_plot(records))], "optbench report --figure headline.svg", wide=True
    )
    tables = [page.table(table, command) for table in headline_tables(records)]
    return Part(id=page.id("part"), title="Headline", short="headline", figures=figures, tables=tables)


def _difference_part(page: _Page, difference: Difference) -> Part:
    tables = [page.table(table, difference.command) for table in difference.tables]
    title = f"{difference.recipe}: what changed between records"
    return Part(id=page.id("part"), title=title, short=f"{difference.recipe} diff", tables=tables, warnings=difference.notes)


def _peers_part(page: _Page, runs: Sequence[PeerRun], where: str) -> Part:
    command = f"optbench report --html report.html --peers {where}"
    figures = []
    for run in runs:
        if run.kind == "latency":
            caption = printable(
                f"{run.model}, {run.weights} weights, {run.threads} threads; over the run's first row, with 95 % intervals."
            )
            figures += page.figures([(f"Peers on {run.model}", caption, plots.peers_plot(speedup_rows(run)))], command, wide=True)
    tables = [page.table(table, command) for run in runs for table in peer_tables(run)]
    return Part(id=page.id("part"), title="Peers", short="peers", figures=figures, tables=tables)


@cache
def _scripts() -> tuple[str, str]:
    """Vega, Vega-Lite and vega-embed in one, and the page's own."""
    import vl_convert

    # The stub requires an argument that the function does not.
    bundle = vl_convert.javascript_bundle()  # type: ignore[call-arg]
    own = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    # Any end tag within a script element ends it.
    vega, page = (script.replace("</script", "<\\/script").replace("<!--", "<\\!--") for script in (bundle, own))
    return vega, page


def render_page(
    records: Sequence[Record],
    *,
    floors: Mapping[str, Mapping[int, float]] | None = None,
    differences: Sequence[Difference] = (),
    peers: Sequence[PeerRun] = (),
    peers_from: str = "",
) -> str:
    """Render the page of one or more records.

    `floors` has milliseconds by token length, for int8 weights, under the machine's fingerprint and the recipe's name, joined with a
    space. `peers_from` is the path of the peers' results, quoted for a shell.

    Raises:
        OptbenchError: the plotting libraries are not installed.
    """
    require_plots()
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    page = _Page()
    known = floors or {}
    parts = [_overview(page, records)]
    parts += [_record_part(page, record, known.get(f"{record.machine.fingerprint} {record.recipe.name}", {})) for record in records]
    parts += [_difference_part(page, difference) for difference in differences]
    if peers:
        parts.append(_peers_part(page, peers, peers_from))
    scripts = _scripts()
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable_value,
    )
    only = parts[1].title if len(records) == 1 else f"Report of {len(records)} records"
    return environment.get_template("page.html.j2").render(
        title=only,
        version=optbench.__version__,
        css=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),  # noqa: S704  # the project's own file
        scripts=[Markup(script) for script in scripts],  # noqa: S704  # the libraries' own
        hashes=["sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts],
        parts=parts,
    )


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
    try:
        chart.configure_view(stroke=None).configure_axisY(labelLimit=300).save(str(path), format=path.suffix[1:], **options)
    except OSError as error:
        raise OptbenchError(f"{path}: cannot be written: {error.strerror}; name another file") from error
