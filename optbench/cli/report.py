"""The report: records as tables, as the field's headline table, as a page, as figures."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from optbench.cli.options import Json, refuse_together
from optbench.cli.terminal import print_heading, print_json, print_line, print_tables, print_warnings
from optbench.errors import OptbenchError

if TYPE_CHECKING:
    from optbench.record.record import Record
    from optbench.report.page import Difference
    from optbench.report.table import Table

__all__ = ["report"]

PEERS = Path("bench/peers/results")
Plot = Literal["headline", "recipes", "waterfall", "accuracy", "plane", "lengths", "queries", "load"]


def report(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="[RECORD|FOLDER]...", help="Records or exported folders; all of exported/ when left out.")
    ] = None,
    percentile: Annotated[
        int | None, typer.Option("--percentile", min=1, max=99, help="Percentile of the latency table. Default: 50.")
    ] = None,
    table: Annotated[bool, typer.Option("--table", help="One row per record: verdict, latency, loss, targets, size, license.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print tables as markdown.")] = False,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write one self-contained page with every figure.")] = None,
    figure: Annotated[Path | None, typer.Option("--figure", metavar="FILE", help="Write a figure as .svg or .png.")] = None,
    plot: Annotated[
        Plot | None, typer.Option("--plot", help="Which figure: headline or recipes for several records; when left out, waterfall for one.")
    ] = None,
    peers: Annotated[Path | None, typer.Option("--peers", help=f"The peers' results for the page; default: {PEERS} if it exists.")] = None,
    probe: Annotated[
        list[Path] | None, typer.Option("--probe", help="What optbench probe --json printed on a record's machine: the floor. Repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show records: what each step bought and cost, latency by length, the verdict. A folder shows its newest record."""
    from optbench.record.record import find_record
    from optbench.record.verdict import judge
    from optbench.report.contents import record_tables
    from optbench.report.headline import headline_of, headline_tables
    from optbench.report.table import verdict_table

    given = {"--html": html, "--figure": figure, "--table": table, "--markdown": markdown, "--json": as_json}
    _check_options({**given, "--percentile": percentile, "--plot": plot, "--peers": peers, "--probe": probe})
    chosen = paths or sorted(path.parent for path in Path("exported").glob("*/records"))
    if not chosen:
        raise OptbenchError("exported/: holds no records; run optbench apply RECIPE first, or name a record")
    records = [find_record(path) for path in chosen]
    if html is not None:
        _write_page(html, chosen, records, peers, probe or [])
    if figure is not None:
        _write_figure(figure, records, plot)
    if written := [path for path in (html, figure) if path is not None]:
        if as_json:
            print_json("report", written=[str(path) for path in written])
        for path in [] if as_json else written:
            print_line(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
        return
    if table:
        if as_json:
            found = [headline_of(record) for record in records]
            print_json("report", headline=[each.model_dump(mode="json") for each in found if each is not None])
        else:
            _print(headline_tables(records), markdown)
        return
    if as_json:
        shown = [{"record": record.model_dump(mode="json"), "verdict": judge(record).model_dump(mode="json")} for record in records]
        print_json("report", records=shown)
        return
    for record in records:
        _print_title(record, markdown)
        _print([*record_tables(record, percentile or 50), verdict_table(judge(record))], markdown)
        print_warnings(record.warnings)


def _check_options(given: Mapping[str, object]) -> None:
    """Refuse what would be ignored."""
    pairs = [("--markdown", "--json"), *((form, file) for form in ("--table", "--markdown") for file in ("--html", "--figure"))]
    pairs += [("--percentile", other) for other in ("--table", "--json", "--html", "--figure")]
    for one, other in pairs:
        refuse_together({one: given[one], other: given[other]})
    for option, needed in (("--plot", "--figure"), ("--peers", "--html"), ("--probe", "--html")):
        if given[option] and given[needed] is None:
            raise typer.BadParameter(f"used only with {needed}; add that or remove this", param_hint=option)


def _print_title(record: "Record", markdown: bool) -> None:
    title = f"{record.recipe.name} {record.created}" + (" (random weights)" if record.weights == "random" else "")
    if markdown:
        print_line(f"# {title}\n")
    else:
        print_heading(title)


def _print(tables: "Sequence[Table]", markdown: bool) -> None:
    from optbench.report.table import to_markdown

    if not markdown:
        print_tables(tables)
        return
    for table in tables:
        print_line(f"## {table.title}\n\n{to_markdown(table)}")


def _write_page(out: Path, paths: "Sequence[Path]", records: "Sequence[Record]", peers: Path | None, probes: "Sequence[Path]") -> None:
    from optbench.report.page import render_page
    from optbench.report.peers import read_peers

    where = peers or (PEERS if any(PEERS.glob("*.json")) else None)
    page = render_page(
        records,
        floors=_floors(records, probes),
        differences=_differences(paths, records),
        peers=read_peers(where) if where else [],
        peers_from=shlex.quote(str(where)) if where else "",
    )
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise OptbenchError(f"{out}: cannot be written: {error.strerror}; name a file in an existing folder") from error


def _write_figure(out: Path, records: "Sequence[Record]", plot: Plot | None) -> None:
    from optbench.report import plots

    plots.require_plots()
    kind = plot or ("waterfall" if len(records) == 1 else "headline")
    if kind not in ("headline", "recipes") and len(records) > 1:
        raise OptbenchError(f"--plot {kind} shows one record, {len(records)} were chosen; name one")
    drawers = {
        "headline": lambda: plots.headline_plot(records),
        "recipes": lambda: plots.recipes_plot(records),
        "waterfall": lambda: plots.tradeoff_plot(records[0]),
        "accuracy": lambda: plots.accuracy_plot(records[0]),
        "plane": lambda: plots.plane_plot(records[0]),
        "lengths": lambda: plots.latency_plot(records[0], {}),
        "queries": lambda: plots.query_plot(records[0]),
        "load": lambda: plots.load_plot(records[0]),
    }
    chart = drawers[kind]()
    if chart is None:
        raise OptbenchError(f"--plot {kind}: the record of {records[0].created} has nothing to draw; choose another plot")
    plots.save_figure(chart, out)


def _floors(records: "Sequence[Record]", probes: "Sequence[Path]") -> dict[str, dict[int, float]]:
    """By machine fingerprint and recipe, the int8 floor by length; only of machines that were probed with the record's threads."""
    from optbench.machine.floor import read_probe

    found = {}
    for path in probes:
        result = read_probe(path)
        for record in records:
            alike = record.machine.fingerprint == result.machine.fingerprint and record.threads == result.peaks.threads
            if alike and record.isa is None:
                found[f"{record.machine.fingerprint} {record.recipe.name}"] = record.recipe.floors_ms(result.peaks, "int8")
    return found


def _differences(paths: "Sequence[Path]", records: "Sequence[Record]") -> "list[Difference]":
    """The chosen records of one recipe against each other; of a folder, its newest record against the one before."""
    from optbench.record.compare import compare
    from optbench.record.record import read_record
    from optbench.report.compare import comparison_tables
    from optbench.report.page import Difference

    by_recipe: dict[str, list[tuple[Path, Record]]] = {}
    for path, record in zip(paths, records, strict=True):
        files = sorted((path / "records").glob("*.json"))[-2:] if path.is_dir() else [path]
        entries = [(file, record if file == files[-1] else read_record(file)) for file in files]
        by_recipe.setdefault(record.recipe.name, []).extend(entries)
    found = []
    for recipe, entries in by_recipe.items():
        ordered = sorted(dict(entries).items(), key=lambda entry: entry[1].created)
        if len(ordered) < 2:
            continue
        command = shlex.join(["optbench", "compare", *(str(path) for path, _ in ordered)])
        try:
            comparison = compare([record for _, record in ordered])
        except OptbenchError as error:
            found.append(Difference(recipe, (), (str(error),), command))
        else:
            found.append(Difference(recipe, comparison_tables(comparison), comparison.notes, command))
    return found
