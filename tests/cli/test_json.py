"""Every --json document against docs/json.md: it has the keys that are documented there, and no others."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from optbench import cli
from optbench.artifact.folder import Artifact
from optbench.artifact.manifest import Kind
from optbench.machine import boxes, floor
from optbench.machine.cpu import read_machine
from optbench.machine.peaks import Peaks
from optbench.measure.load.report import ScenarioReport
from optbench.measure.stability import Stability, StabilityRow
from optbench.record.record import Record, write_record
from optbench.record.verdict import judge
from optbench.run import apply as runner
from optbench.run import artifacts as artifact_runs
from optbench.run import measure as measuring
from optbench.run.floors import RecipeFloor

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "recipes" / "gte-large.yaml")
ROW = re.compile(r"^\| `([^`]+)` \| (.+) \|$")


def documented() -> dict[str, dict[str, bool]]:
    """By section of docs/json.md, each key's path and whether it is optional."""
    sections: dict[str, dict[str, bool]] = {}
    current = ""
    for line in (ROOT / "docs" / "json.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            current = line[3:]
            sections[current] = {}
        elif match := ROW.match(line):
            sections[current][match[1]] = match[2].startswith("optional")
    return sections


def check_keys(command: str, document: dict[str, Any], name: str | None = None) -> None:
    """Hold a document against its section, level by level as deep as that goes."""
    sections = documented()
    rows = sections["every document"] | sections[name or command]
    assert document["schema_version"] == 1
    assert document["command"] == command
    for parent in sorted({""} | {row.rpartition(".")[0] for row in rows}):
        prefix = f"{parent}." if parent else ""
        below = {
            row.removeprefix(prefix).split(".")[0].removesuffix("[]"): optional for row, optional in rows.items() if row.startswith(prefix)
        }
        known, wanted = below.keys(), {key for key, optional in below.items() if not optional}
        entries = list(under(document, parent))
        assert entries, f"{command}: {parent} is empty, so its keys were not seen"
        for entry in entries:
            assert wanted <= entry.keys() <= known, f"{command}: {parent or 'top'} has {sorted(entry)}, docs/json.md {sorted(known)}"


def under(document: Any, path: str) -> Iterator[dict[str, Any]]:
    """What lies at a path such as `checks[]`."""
    if not path:
        yield document
        return
    head, _, rest = path.partition(".")
    for entry in document[head.removesuffix("[]")] if head.endswith("[]") else [document[head]]:
        yield from under(entry, rest)


def printed(*arguments: str, status: int = 0) -> dict[str, Any]:
    """The document of a command run in this process."""
    result = CliRunner().invoke(cli.app, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def test_every_command_has_a_section() -> None:
    assert {name.split()[0] for name in documented()} == {*cli.COMMANDS, "every", "error"}


def test_check_and_schema_and_plan(tmp_path: Path) -> None:
    check_keys("check", printed("check", RECIPE))
    check_keys("schema", printed("schema"))
    where = ("--weights", "random", "--cache", str(tmp_path))
    check_keys("plan", printed("plan", RECIPE, *where))
    check_keys("apply", printed("apply", RECIPE, *where, "--dry-run"), "plan")


def test_apply(monkeypatch: pytest.MonkeyPatch, make_record: Callable[..., Record], tmp_path: Path) -> None:
    record = make_record()
    applied = runner.Applied(record, judge(record), tmp_path)
    monkeypatch.setattr(runner, "apply", lambda *_: applied)
    document = printed("apply", RECIPE)
    check_keys("apply", document)
    assert document["record"] == str(tmp_path / "records" / record.file_name)


def test_report_and_compare_and_gate(make_record: Callable[..., Record], tmp_path: Path) -> None:
    accuracy = ({"q1": 0.5, "q2": 0.7}, {"q1": 0.5, "q2": 0.6})
    paths = [str(write_record(make_record(accuracy=accuracy, created=f"2026-11-2{day}T12:00:00Z"), tmp_path)) for day in (4, 5)]
    check_keys("report", printed("report", *paths))
    check_keys("report", printed("report", "--table", *paths), "report --table")
    check_keys("report", printed("report", "--figure", str(tmp_path / "figure.svg"), *paths), "report --html")
    check_keys("compare", printed("compare", *paths))
    check_keys("gate", printed("gate", *paths))


def test_measure_and_stability_and_scenarios(
    monkeypatch: pytest.MonkeyPatch, make_record: Callable[..., Record], make_artifact: Callable[..., Artifact]
) -> None:
    # What they measure is tested elsewhere; the keys are those of what the measuring functions return.
    row = StabilityRow(condition="1 thread", changes="threads")
    measured = artifact_runs.MeasuredArtifacts(timings=make_record().timings, accuracy={}, warnings=())
    stability = Stability(sha256="f", engine={}, reference="alone", n_texts=16, n_documents=0, rows=(row,))
    load = ScenarioReport(
        artifact_sha256="f", engine={}, tokens=(8,), seconds=1, limit_ms=5, limit_given=True, models=(), serves_more=None, notes=()
    )
    monkeypatch.setattr(artifact_runs, "measure_artifacts", lambda *_: measured)
    monkeypatch.setattr(measuring, "measure_text_stability", lambda *_: stability)
    monkeypatch.setattr(measuring, "measure_load", lambda *_: load)
    for command in ("measure", "stability", "scenarios"):
        check_keys(command, printed(command, str(make_artifact(Kind.ONNX).path)))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["measure", "--batch", "5000"], "--batch: 5000: Input should be less than or equal to 1024"),
        (["measure", "--lengths", "200000"], "--lengths: 200000: Input should be"),
        (["scenarios", "--batches", "0,8"], "expected positive whole numbers"),
        (["scenarios", "--batches", "2000"], "--batches: 2000: Input should be"),
    ],
)
def test_option_out_of_range_is_refused_by_name(arguments: list[str], problem: str, make_artifact: Callable[..., Artifact]) -> None:
    command, *options = arguments
    result = CliRunner().invoke(cli.app, [command, str(make_artifact(Kind.ONNX).path), *options])
    assert result.exit_code == 2
    assert problem in " ".join(result.output.split())


def test_probe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    peaks = Peaks(threads=2, read_gb_per_s=40, gemm_tops={"fp32": 0.4, "int8": 1.6})
    monkeypatch.setattr(floor, "probe", lambda: floor.ProbeResult(machine=read_machine(), peaks=peaks))
    monkeypatch.setattr(boxes, "FOLDERS", (tmp_path / "wheel", tmp_path))
    document = printed("probe", RECIPE, "--output", str(tmp_path / "exported"), "--write-box", "lab")
    check_keys("probe", document)
    assert Path(document["box_path"]) == tmp_path / "lab.yaml"
    assert boxes.matching_box(read_machine()) == boxes.load_boxes(tmp_path)[0]
    check_keys("probe", printed("probe", RECIPE, "--output", str(tmp_path / "exported")))
    assert document["floors"][0].keys() == RecipeFloor.model_fields.keys()


def test_error_is_a_document_too_and_still_said_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.argv", ["optbench", "report", "--json", str(tmp_path / "none.json")])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    out, err = capsys.readouterr()
    assert exited.value.code == 2
    check_keys("error", json.loads(out))
    assert err.startswith("error: ")
    assert json.loads(out)["error"]["type"] == "RecordError"
