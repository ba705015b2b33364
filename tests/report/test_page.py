"""The page without a browser: one file, nothing of a record as markup, and scripts of its own only."""

import base64
import hashlib
import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from optbench import cli
from optbench.errors import MachineError, OptbenchError, RecordError
from optbench.machine.cpu import read_machine
from optbench.machine.peaks import Peaks
from optbench.record.record import Record, write_record
from optbench.report import plots
from optbench.report.headline import headline_of, headline_tables
from optbench.report.peers import peer_tables, read_peers, speedup_rows
from optbench.report.table import to_markdown

from .conftest import HOSTILE, peer_runs


class Elements(HTMLParser):
    """Every element with its attributes, and the text of the scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._inside = tag == "script"
        if self._inside:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts[-1] += data


def test_page_is_one_file_under_5_mb_that_names_nothing_to_fetch(page: Path) -> None:
    assert page.stat().st_size < 5e6
    elements = Elements(page.read_text("utf-8"))
    for tag, attributes in elements.found:
        for name in ("src", "href", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), f"{tag} {name}={value}"


def test_no_markup_of_a_stranger_gets_into_the_page(page: Path) -> None:
    text = page.read_text("utf-8")
    elements = Elements(text)
    tags = {tag for tag, _ in elements.found}
    assert not tags & {"img", "svg", "iframe", "object"}
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]
    for hostile in (text for text in HOSTILE if "<" in text):
        assert hostile not in re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert "{{ 7 * 7 }}" in text
    assert "\x1b" not in text
    data = [json.loads(script) for (_, attributes), script in zip(scripts_of(elements), elements.scripts, strict=True) if attributes]
    assert any(HOSTILE[0] in json.dumps(spec, ensure_ascii=False) for spec in data)


def scripts_of(elements: Elements) -> list[tuple[str, dict[str, str | None]]]:
    return [found for found in elements.found if found[0] == "script"]


def test_policy_allows_the_pages_own_scripts_and_no_others(page: Path) -> None:
    elements = Elements(page.read_text("utf-8"))
    policy = next(attributes["content"] for tag, attributes in elements.found if tag == "meta" and attributes.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in policy
    own = [script for (_, attributes), script in zip(scripts_of(elements), elements.scripts, strict=True) if not attributes]
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in own}
    assert len(hashes) == 2
    assert set(re.findall(r"'sha256-[^']+'", policy)) == hashes


def test_text_of_a_record_is_in_a_figures_data_and_nowhere_else(make_steps_record: Callable[..., Record]) -> None:
    record = make_steps_record("MARK")
    drawn = [
        plots.waterfall_plot(record),
        plots.accuracy_plot(record),
        plots.plane_plot(record),
        plots.latency_plot(record, {8: 1.0}),
        plots.headline_plot([record]),
        plots.peers_plot(speedup_rows(peer_runs("MARK")[0])),
    ]

    def elsewhere(value: object, key: str = "") -> list[str]:
        if isinstance(value, dict):
            return [each for name, inner in value.items() if name not in ("datasets", "values") for each in [name, *elsewhere(inner, name)]]
        if isinstance(value, list):
            # The order of a scale's values is data too: Vega takes it as literals.
            return [] if key in ("sort", "domain") else [each for inner in value for each in elsewhere(inner)]
        return [str(value)]

    for chart in drawn:
        assert chart is not None
        assert not [text for text in elsewhere(chart.to_dict()) if "MARK" in text]


def test_pareto_front_leaves_out_what_another_beats() -> None:
    rows = [{"ms": 3.0, "change": 0.0}, {"ms": 1.0, "change": -1.0}, {"ms": 2.0, "change": -2.0}, {"ms": 4.0, "change": 0.0}]
    assert plots.pareto_front(rows) == [rows[1], rows[0]]


def test_plots_of_a_record_without_accuracy_or_timing_are_left_out(make_record: Callable[..., Record]) -> None:
    record = make_record(weights="random")
    assert plots.accuracy_plot(record) is None
    assert plots.plane_plot(make_record(weights="real")) is None
    untimed = record.model_copy(update={"points": tuple(point.model_copy(update={"timing": None}) for point in record.points)})
    assert plots.waterfall_plot(untimed) is None
    assert plots.headline_plot([untimed]) is None


def test_headline_has_what_the_field_asks_for(make_steps_record: Callable[..., Record]) -> None:
    record = make_steps_record()
    found = headline_of(record)
    assert found is not None
    assert found.dimension == 1024
    assert found.fp32 == "openvino fp32"
    assert found.speedup.point == pytest.approx(2.5, rel=0.02)
    assert found.loss is not None
    assert found.loss.change.point > 0
    text = "".join(map(to_markdown, headline_tables([record])))
    for word in ("MIT", "1024", "2.5", "CPU", "2 threads", "+", ">= 2.25x (90 -> 40 ms)", "| -1.0 |", found.outcome):
        assert word in text


def test_headline_of_random_weights_gives_no_loss(make_steps_record: Callable[..., Record]) -> None:
    text = to_markdown(headline_tables([make_steps_record(weights="random")])[0])
    assert "random weights" in text
    assert "%" not in text.split("\n")[2]


def test_peers_are_read_and_those_that_did_not_run_say_why(tmp_path: Path) -> None:
    for index, run in enumerate(peer_runs()):
        (tmp_path / f"{index}.json").write_text(run.model_dump_json())
    runs = read_peers(tmp_path)
    tables = [table for run in runs for table in peer_tables(run)]
    assert [table.title for table in tables] == ["Peers: latency in ms by tokens", "Peers that did not run", "Peers: accuracy"]
    assert tables[0].rows[0][1] == "6.00 (1.50x)"
    assert "cannot be installed" in tables[1].rows[0][1]


@pytest.mark.parametrize(
    ("content", "said"), [("{", "not JSON"), ("[]", "not a run of the peers"), ('{"schema_version": 9}', "schema_version")]
)
def test_broken_peers_are_refused_by_name(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    path.write_text(content)
    with pytest.raises(RecordError, match=said) as caught:
        read_peers(path)
    assert str(path) in str(caught.value)
    with pytest.raises(RecordError, match=r"no \.json files"):
        read_peers(tmp_path / "..")


def test_without_the_libraries_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "altair", None)
    with pytest.raises(OptbenchError, match=r"pip install 'optbench\[report\]'"):
        plots.require_plots()


def report(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, ["report", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_report_writes_page_and_figures_with_floor_and_difference(make_steps_record: Callable[..., Record], tmp_path: Path) -> None:
    folder = tmp_path / "gte-large"
    for day in (4, 5):
        write_record(make_steps_record(created=f"2026-11-2{day}T12:00:00Z"), folder / "records")
    record = make_steps_record()
    peaks = Peaks(threads=record.threads, read_gb_per_s=40, gemm_tops={"fp32": 0.4, "int8": 1.6})
    machine = read_machine().model_copy(update={"cpu": record.machine.cpu})
    (tmp_path / "probe.json").write_text(json.dumps({"machine": machine.model_dump(mode="json"), "peaks": peaks.model_dump(mode="json")}))
    page, figure = tmp_path / "out.html", tmp_path / "out.svg"
    document = json.loads(
        report(str(folder), "--html", str(page), "--figure", str(figure), "--probe", str(tmp_path / "probe.json"), "--json")
    )
    assert document["written"] == [str(page), str(figure)]
    text = page.read_text("utf-8")
    assert "floor, int8" in text
    assert "What changed between records" in text
    assert "Speed-up over" in text
    assert "<svg" in figure.read_text()
    assert "beir:chorus" in figure.read_text()


def test_figure_of_another_ending_or_place_is_an_error(make_steps_record: Callable[..., Record], tmp_path: Path) -> None:
    chart = plots.headline_plot([make_steps_record()])
    assert chart is not None
    with pytest.raises(OptbenchError, match=r"\.svg or \.png"):
        plots.save_figure(chart, tmp_path / "figure.gif")
    with pytest.raises(OptbenchError, match="cannot be written"):
        plots.save_figure(chart, tmp_path / "none" / "figure.svg")


def test_probe_that_is_none_is_refused(make_record: Callable[..., Record], tmp_path: Path) -> None:
    path = write_record(make_record(), tmp_path)
    with pytest.raises(MachineError, match="expected the output of optbench probe --json"):
        CliRunner().invoke(cli.app, ["report", str(path), "--html", "x.html", "--probe", str(path)], catch_exceptions=False)


def test_plot_of_several_records_is_the_headline_only(make_record: Callable[..., Record], tmp_path: Path) -> None:
    path = str(write_record(make_record(), tmp_path))
    with pytest.raises(OptbenchError, match="shows one record, 2 were chosen"):
        CliRunner().invoke(cli.app, ["report", path, path, "--figure", "x.svg", "--plot", "plane"], catch_exceptions=False)


def test_markdown_of_tables_is_printed_for_a_readme(make_steps_record: Callable[..., Record], tmp_path: Path) -> None:
    path = str(write_record(make_steps_record(), tmp_path))
    assert "| model | verdict |" in report(path, "--table", "--markdown")
    assert "## Accuracy after each step" in report(path, "--markdown")
