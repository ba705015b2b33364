"""The sections of the HTML page: what is shown, in which order, under which title."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from optbench.record.record import Record
from optbench.record.verdict import judge
from optbench.report import plots
from optbench.report.contents import command_of, record_tables
from optbench.report.decimals import fixed
from optbench.report.headline import Headline, headline_of, headline_tables, title_of
from optbench.report.peers import PeerRun, peer_tables, speedup_rows
from optbench.report.table import Table, is_text_column, verdict_table
from optbench.report.text import printable

if TYPE_CHECKING:
    import altair as alt

__all__ = ["Difference", "Part", "Sections"]

NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
# A longer text may wrap.
PROSE_LENGTH = 40
# Pixels of a figure beside another; one with more lines is taller.
HEIGHT, LINE_HEIGHT = 280, 30
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
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Badge:
    """A verdict in a colored frame: `kind` is pass, fail, inconclusive or latency-only."""

    kind: str
    text: str


@dataclass(frozen=True)
class Figure:
    """A chart on the page; `href` is the id of the section that its title leads to."""

    id: str
    title: str
    caption: str
    spec: dict[str, Any]
    wide: bool = False
    badge: Badge | None = None
    href: str = ""


@dataclass(frozen=True)
class Tile:
    """A figure in large print."""

    about: str
    value: str
    more: str


@dataclass(frozen=True)
class Changes:
    """What changed since an earlier record of the recipe."""

    tables: Sequence[PageTable]
    notes: Sequence[str]
    command: str


@dataclass(frozen=True)
class Part:
    """A section of the page.

    Attributes:
        short: its name in the list of contents.
        lead: the table that it starts with.
        planes: small figures, one a recipe.
        more: tables that are collapsed at first.
        facts: of the machine and the versions, name and value.
    """

    id: str
    title: str
    short: str
    text: str = ""
    badge: Badge | None = None
    random: bool = False
    command: str = ""
    lead: PageTable | None = None
    planes: Sequence[Figure] = ()
    tiles: Sequence[Tile] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[PageTable] = ()
    more: Sequence[PageTable] = ()
    changes: Changes | None = None
    facts: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = ()


def _clean(value: Any) -> Any:
    """Strip control characters from a figure's data."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {key: _clean(each) for key, each in value.items()}
    return [_clean(each) for each in value] if isinstance(value, list) else value


def _cell(text: str, number: bool) -> Cell:
    match = NUMBER.search(text) if number else None
    classes = "number" if number else "prose" if len(text) > PROSE_LENGTH else ""
    return Cell(text, float(match[0]) if match else None, classes)


def _badge(record: Record) -> Badge:
    verdict = judge(record)
    return Badge("latency-only" if verdict.latency_only else str(verdict.outcome).replace(" ", "-"), verdict.title)


class Sections:
    """Builds the page's sections, with unique ids."""

    def __init__(self, records: Sequence[Record], floors: Mapping[str, Mapping[int, float]], differences: Sequence[Difference]) -> None:
        """See `page.render_page` for `floors`."""
        self._records, self._floors = records, floors
        self._differences = {difference.recipe: difference for difference in differences}
        self._numbers = count(1)

    def parts(self, peers: Sequence[PeerRun], peers_from: str) -> list[Part]:
        """The results, each record, and the peers."""
        # A recipe's differences stand with its newest record.
        newest = {record.recipe.name: index for index, record in sorted(enumerate(self._records), key=lambda entry: entry[1].created)}
        own = [self._record(record, newest[record.recipe.name] == index) for index, record in enumerate(self._records)]
        overview = self._overview([part.id for part in own])
        return [overview, *own, *([self._peers(peers, peers_from)] if peers else [])]

    def _id(self, kind: str) -> str:
        return f"{kind}-{next(self._numbers)}"

    def _table(self, table: Table) -> PageTable:
        numbers = [not is_text_column(table, index) for index in range(len(table.columns))]
        rows = [[_cell(text, number) for text, number in zip(row, numbers, strict=True)] for row in table.rows]
        columns = [Column(name, number) for name, number in zip(table.columns, numbers, strict=True)]
        return PageTable(self._id("table"), table, columns, rows)

    def _figures(self, found: "Sequence[tuple[str, str, alt.LayerChart | None]]", *, wide: bool = False) -> list[Figure]:
        return [
            Figure(self._id("figure"), title, caption, _clean(chart.to_dict()), wide)
            for title, caption, chart in found
            if chart is not None
        ]

    def _overview(self, ids: Sequence[str]) -> Part:
        answers, models = map(self._table, headline_tables(self._records))
        caption = (
            "Result of each recipe with 95 % intervals. Orange: the target of each, and the allowed loss. Grey: the fastest fp32 engine of "
            "the same run. Below the plane: recipes whose accuracy was not judged."
        )
        return Part(
            id=self._id("part"),
            title="Results",
            short="results",
            command="optbench report --table",
            lead=answers,
            planes=self._planes(ids) if len(ids) > 1 else (),
            figures=self._figures([("All recipes", caption, plots.recipes_plot(self._records))], wide=True),
            tables=[models],
        )

    def _planes(self, ids: Sequence[str]) -> list[Figure]:
        planes = []
        for record, href in zip(self._records, ids, strict=True):
            chart, found = plots.plane_plot(record, small=True), headline_of(record)
            if chart is not None and found is not None:
                before, after = fixed([found.fp32_ms.point, found.optimized_ms.point])
                caption = f"{before} -> {after} ms, {found.speedup.point:.2f}x; target {found.target}"
                spec = _clean(chart.to_dict())
                planes.append(Figure(self._id("figure"), title_of(record), caption, spec, badge=_badge(record), href=href))
        return planes

    def _record(self, record: Record, newest: bool) -> Part:
        tables = [self._table(table) for table in (verdict_table(judge(record)), *record_tables(record))]
        headline = headline_of(record)
        difference = self._differences.get(record.recipe.name) if newest else None
        alike = sum(other.recipe.name == record.recipe.name for other in self._records)
        return Part(
            id=self._id("record"),
            title=title_of(record),
            short=record.recipe.name + (f" {record.created[:10]}" if alike > 1 else ""),
            text=record.recipe.description,
            badge=_badge(record),
            random=record.weights == "random",
            command=command_of(record),
            # A single record's are in the table above.
            tiles=list(_tiles(headline)) if headline and len(self._records) > 1 else [],
            figures=self._record_figures(record),
            tables=tables[:FIRST_TABLES],
            more=tables[FIRST_TABLES:],
            changes=self._changes(difference) if difference else None,
            facts=_facts(record),
            warnings=record.warnings,
        )

    def _record_figures(self, record: Record) -> list[Figure]:
        floor = self._floors.get(f"{record.machine.fingerprint} {record.recipe.name}", {})
        tall = max(HEIGHT, LINE_HEIGHT * len(record.points))
        plane = (
            "Each step by its latency and the change of accuracy that the verdict is about. Dashed: the recipe's targets in orange, the "
            "fastest fp32 engine in grey. Green: where both targets are met."
        )
        lengths = "Median latency by token length with 95 % intervals, both axes logarithmic. "
        lengths += "The floor is a lower bound for int8 weights on this machine." if floor else "Grey: fp32."
        bought = "Milliseconds after each step with 95 % intervals. Dashed: the target in orange, the fastest fp32 engine in grey."
        cost = (
            "Change of each task's metric against the base in torch fp32, with paired 95 % intervals. Dashed: the allowed loss in orange."
        )
        queries = plots.query_changes(record)
        load = "Every rate that the search for the highest tried; hollow: over the limit on p99. Latency counts from the arrival."
        return self._figures(
            [
                ("Accuracy over latency", plane, plots.plane_plot(record) if record.weights == "real" else None),
                ("Latency by length", lengths, plots.latency_plot(record, floor)),
                ("What each step bought", bought, plots.waterfall_plot(record, tall)),
                ("What each step cost", cost, plots.accuracy_plot(record, tall)),
                ("Change of single queries", queries.summary if queries else "", plots.query_plot(record)),
                ("p99 under load", load, plots.load_plot(record)),
            ]
        )

    def _changes(self, difference: Difference) -> Changes:
        return Changes([self._table(table) for table in difference.tables], difference.notes, difference.command)

    def _peers(self, runs: Sequence[PeerRun], where: str) -> Part:
        figures = []
        for run in runs:
            if run.kind == "latency":
                about = f"{run.model}, {run.weights} weights, {run.threads} threads{f', input: {run.interface}' if run.interface else ''}"
                caption = printable(f"{about}; over the run's first row, with 95 % intervals.")
                figures += self._figures([(f"Peers on {run.model}", caption, plots.peers_plot(speedup_rows(run)))])
        tables = [self._table(table) for run in runs for table in peer_tables(run)]
        command = f"optbench report --html report.html --peers {where}"
        return Part(id=self._id("part"), title="Peers", short="peers", command=command, figures=figures, tables=tables)


def _facts(record: Record) -> list[tuple[str, str]]:
    machine = record.machine
    return [
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


def _tiles(found: Headline) -> Iterator[Tile]:
    before, after, low, high = fixed([found.fp32_ms.point, found.optimized_ms.point, found.optimized_ms.low, found.optimized_ms.high])
    yield Tile(f"fp32, {found.tokens} tokens", f"{before} ms", found.fp32)
    yield Tile("optimized", f"{after} ms", f"{low}..{high} ms")
    yield Tile("speed-up", f"{found.speedup.point:.2f}x", f"{found.speedup.low:.2f}..{found.speedup.high:.2f}, target {found.target}")
    if found.loss is not None:
        change, limit = found.loss.change, -100 * found.targets.accuracy_loss_max
        task = f"{found.loss.metric} {found.loss.task}" + (", synthetic" if found.loss.synthetic else "")
        interval = f"{100 * change.low:+.1f}..{100 * change.high:+.1f}"
        yield Tile("largest loss", f"{100 * change.point:+.1f} %", f"{interval}, allowed {limit:+.1f}; {task}")
    yield Tile("size", f"{found.optimized_bytes / 1e6:.0f} MB", f"of {found.fp32_bytes / 1e6:.0f} MB")
    yield Tile("box", found.box, f"{found.threads} threads" + (f", {found.isa}" if found.isa else ""))
