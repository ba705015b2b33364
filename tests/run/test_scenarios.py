"""A recipe that asks for scenarios: what is run, what the record keeps, what the report and the card show."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optbench.artifact.folder import Artifact
from optbench.artifact.manifest import Kind
from optbench.errors import RecipeError, TaskError
from optbench.measure.load.report import ScenarioReport
from optbench.measure.subject import Subject
from optbench.recipe.load import load_recipe
from optbench.recipe.schema import Recipe, Scenarios
from optbench.record.record import Record, read_record, write_record
from optbench.record.verdict import judge
from optbench.report.card import render_card
from optbench.report.table import scenario_tables
from optbench.run import measure, measurements
from optbench.run.cache import Cache
from optbench.run.evaluate import StageEvaluator
from optbench.run.listener import Silent
from optbench.run.measure import query_rows
from optbench.run.measurements import Served, measure_served
from optbench.run.plan import Item, Options, Run, Stage
from optbench.steps.export_onnx import ExportOnnx
from optbench.tasks.retail import Retail
from tests.measure.load.test_concurrency import result

RECIPE = Path(__file__).parents[2] / "recipes" / "minilm-l6.yaml"


def report() -> ScenarioReport:
    return ScenarioReport(
        artifact_sha256="f",
        engine={"engine": "onnxruntime"},
        tokens=(4, 6, 9),
        seconds=1,
        limit_ms=5,
        limit_given=True,
        models=(result("one_session", 100, 102), result("many_sessions", 150, 153)),
        serves_more="many_sessions",
        notes=("idle threads sleep",),
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Subject, list[Any], Scenarios]]:
    """What `run_scenarios` was asked for."""
    calls: list[tuple[Subject, list[Any], Scenarios]] = []

    def run(subject: Subject, rows: list[Any], settings: Scenarios, progress: object) -> ScenarioReport:
        calls.append((subject, rows, settings))
        return report()

    monkeypatch.setattr(measure, "run_scenarios", run)
    monkeypatch.setattr(measurements, "measure_serving", lambda *_: None)
    return calls


def served(artifact: Artifact, recipe: Recipe, folder: Path) -> tuple[Served, StageEvaluator]:
    run = Run(recipe, Options(cache=Cache(folder)))
    evaluator = StageEvaluator(run, Silent())
    return measure_served(run, Stage(Item("0 export_onnx", ExportOnnx(), 0), artifact), evaluator, Silent()), evaluator


def test_recipe_that_does_not_ask_runs_none(asked: list[Any], make_artifact: Callable[..., Artifact], tmp_path: Path) -> None:
    recipe = load_recipe(RECIPE).model_copy(update={"stability": None})
    assert recipe.scenarios is None
    assert served(make_artifact(Kind.ONNX), recipe, tmp_path)[0].scenarios is None
    assert asked == []


def test_recipe_that_asks_runs_them_on_all_its_real_queries(
    asked: list[Any], make_artifact: Callable[..., Artifact], tmp_path: Path
) -> None:
    artifact = make_artifact(Kind.ONNX)
    settings = Scenarios(rate=50, limit_ms=20, seconds=3, lengths=(8,), batches=(4,))
    recipe = load_recipe(RECIPE).model_copy(update={"scenarios": settings, "stability": None})
    found, evaluator = served(artifact, recipe, tmp_path)
    assert found.scenarios == report()
    ((subject, rows, given),) = asked
    assert given == settings
    assert subject == Subject(artifact, recipe.engine_for(Kind.ONNX), label="0 export_onnx")
    # Fidelity and serving look at a few of them only.
    assert len(rows) == len(Retail().load().queries) > len(evaluator.texts.queries)
    assert len({len(row) for row in rows}) > 3


def test_tasks_without_queries_are_refused(make_artifact: Callable[..., Artifact]) -> None:
    with pytest.raises(TaskError, match="have no queries; name one that has"):
        query_rows(make_artifact(Kind.ONNX), [])


def test_recipe_file_names_the_line_of_a_wrong_rate(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    text = RECIPE.read_text()
    path.write_text(text + "scenarios: {rate: -3, seconds: 5}\n")
    with pytest.raises(RecipeError, match=rf"recipe.yaml:{text.count(chr(10)) + 1} scenarios.rate: -3 found"):
        load_recipe(path)


def test_record_keeps_them_and_report_and_card_show_them(make_record: Callable[..., Record], tmp_path: Path) -> None:
    record = make_record(scenarios=report())
    assert read_record(write_record(record, tmp_path)) == record
    assert [table.title for table in scenario_tables(record)] == ["Single stream", "Server", "Offline"]
    card = render_card(record, judge(record))
    assert "many_sessions serves more at that p99" in card


def test_record_without_them_shows_none(make_record: Callable[..., Record]) -> None:
    record = make_record()
    assert scenario_tables(record) == []
    assert "## Server" not in render_card(record, judge(record))
