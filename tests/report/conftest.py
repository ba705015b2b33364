"""A page of two records, one as a stranger would write it, drawn once a session."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from optbench import cli
from optbench.measure.statistics import Change, Interval
from optbench.record.record import Record
from optbench.report.page import Difference, render_page
from optbench.report.peers import PeerRow, PeerRun
from optbench.report.table import Table

# What each would do if it were put into the page as markup, as a script, as a template or as a Vega expression.
HOSTILE = (
    "</script><script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 2">',
    "{{ 7 * 7 }}{% raw %}",
    "'+(window.hacked=3)+'",
    "<!--<script>",
    "\x1b[31mred\u202e",
)


@pytest.fixture
def make_steps_record(make_record: Callable[..., Record]) -> Callable[..., Record]:
    """A factory of records with several steps, tasks and models, every free text of which is `text`."""

    def make(text: str = "", tasks: tuple[str, ...] = ("beir:chorus", "sts:test"), **options: object) -> Record:
        values = {f"q{index}": 0.5 for index in range(20)}
        record = make_record(
            accuracy=(values, {name: value + index / 2000 for index, (name, value) in enumerate(values.items())}), **options
        )
        base, final = record.points

        def named(point: object, label: str) -> object:
            results = tuple(final.accuracy[0].model_copy(update={"task": task + text}) for task in tasks)
            first = tuple(base.accuracy[0].model_copy(update={"task": task + text}) for task in tasks)
            return (base if point is base else final).model_copy(update={"label": label, "accuracy": first if point is base else results})

        points = (named(base, "base"), named(final, f"0 export_onnx{text}"), named(final, f"1 quantize_static{text}"))
        recipe = record.recipe.model_copy(update={"description": f"A recipe {text}", "publishes": f"Model {text}"})
        machine = record.machine.model_copy(update={"cpu": f"CPU {text}"})
        changes = {"points": points, "recipe": recipe, "machine": machine, "warnings": (f"a warning {text}",), "base": f"path:{text}"}
        return record.model_copy(update=changes)

    return make


@pytest.fixture(scope="session")
def page_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture
def page(make_steps_record: Callable[..., Record], page_folder: Path) -> Path:
    """The page's file."""
    path = page_folder / "report.html"
    if not path.exists():
        records = [make_steps_record(), make_steps_record("".join(HOSTILE), created="2026-11-25T12:00:00Z")]
        floors = {f"{record.machine.fingerprint} {record.recipe.name}": {8: 5.0, 128: 20.0} for record in records}
        hostile = "".join(HOSTILE)
        difference = Difference(
            "gte-large", [Table(hostile, ["a", hostile], [[hostile, "1.5"], ["x", "0.5"]], hostile)], [hostile], hostile
        )
        path.write_text(
            render_page(records, floors=floors, differences=[difference], peers=peer_runs(hostile), peers_from="peers"), "utf-8"
        )
    return path


@pytest.fixture
def exported_page(page_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page of the records of this repository, with its peers and what changed between records."""
    path = page_folder / "exported.html"
    monkeypatch.chdir(Path(__file__).parents[2])
    if not path.exists():
        result = CliRunner().invoke(cli.app, ["report", "--html", str(path)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    return path


def peer_runs(text: str = "") -> list[PeerRun]:
    """A latency run with a peer that did not run, and an accuracy run."""
    interval = Interval(point=1.5, low=1.4, high=1.6, confidence=0.95, n=15, bounded=True)
    about = {"schema_version": 1, "model": f"minilm{text}", "weights": "real", "created": "2026-11-25T12:00:00Z", "threads": 2}
    rows = (
        PeerRow(name="torch", precision="fp32", round_medians_ns={16: (6_000_000,)}, speedup={16: interval}),
        PeerRow(name=f"other{text}", reason=f"cannot be installed{text}"),
    )
    change = Change(point=-0.01, low=-0.02, high=0.001, confidence=0.95, n=99, bounded=True)
    measured = (PeerRow(name=f"other{text}", precision="int8", change={f"chorus{text}": change}),)
    return [PeerRun(kind="latency", rows=rows, **about), PeerRun(kind="accuracy", rows=measured, **about)]
