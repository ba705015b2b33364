"""The plan: keys change with anything that may change a step's output, and `apply` uses the very keys that `plan` prints."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from optbench.artifact.folder import Artifact, seal
from optbench.artifact.manifest import Kind
from optbench.errors import RecipeError
from optbench.recipe.load import load_recipe
from optbench.recipe.schema import Recipe
from optbench.run.cache import Cache
from optbench.run.inputs import RESOLVERS, resolve
from optbench.run.plan import BASELINE_INDEX, Item, Options, Run, Stage, StepOutcome, make_plan, start_index, walk
from optbench.steps import STEPS, Step
from optbench.steps.base import Input
from optbench.steps.convert_openvino import ConvertOpenvino
from optbench.steps.export_onnx import ExportOnnx
from optbench.steps.fuse_graph import FuseGraph
from optbench.steps.prune_structured import PruneStructured
from optbench.steps.pruning.latency import LayerTimes
from optbench.steps.quantize_static import QuantizeStatic

RECIPES = Path(__file__).parents[2] / "recipes"
# Each kind of step once, in three recipes that a checkpoint can pass through.
RECIPES_OF_ALL_STEPS: dict[str, list[dict[str, Any]]] = {
    "openvino": [
        {"step": "trim_vocabulary", "corpus": ["corpus.jsonl"]},
        {"step": "prune_structured", "latency_ratio": 0.5},
        {"step": "distill"},
        {"step": "finetune", "data": ["pairs.jsonl"]},
        {"step": "export_onnx"},
        {"step": "convert_openvino"},
        {"step": "compress_tables"},
        {"step": "quantize_static"},
    ],
    "weights": [{"step": "export_onnx"}, {"step": "convert_openvino"}, {"step": "compress_weights", "weights": "int8_asym"}],
    "onnx": [{"step": "export_onnx"}, {"step": "fuse_graph", "fusions": [{"name": "bias_gelu"}]}, {"step": "quantize_dynamic"}],
    "qdq": [{"step": "export_onnx"}, {"step": "quantize_static_qdq"}],
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(load_recipe(RECIPES / "minilm-l6.yaml"), Options(cache=Cache(tmp_path / "cache")))


def key_of(step: Step, run: Run, source: str = "a") -> str:
    resolutions = resolve(step, run, work=False)
    assert resolutions is not None
    return run.step_key(step, source, resolutions)


def changed(run: Run, **changes: Any) -> Run:
    """The same run of a recipe with these changes."""
    return Run(run.recipe.model_copy(update=changes), run.options)


def test_key_changes_with_source_options_and_calibration(run: Run) -> None:
    plain = key_of(QuantizeStatic(), run)
    other_texts = changed(run, calibration=run.recipe.calibration.model_copy(update={"seed": 1}))
    assert key_of(QuantizeStatic(), run) == plain
    assert key_of(QuantizeStatic(), run, source="b") != plain
    assert key_of(QuantizeStatic(smooth_quant_alpha=0.5), run) != plain
    assert key_of(QuantizeStatic(), other_texts) != plain


def test_key_ignores_what_a_step_does_not_declare(run: Run) -> None:
    other_texts = changed(run, calibration=run.recipe.calibration.model_copy(update={"seed": 1}))
    assert key_of(ConvertOpenvino(), run) == key_of(ConvertOpenvino(), other_texts)


def test_key_changes_with_the_step_version_and_the_libraries(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = key_of(ExportOnnx(), run)
    monkeypatch.setattr(ExportOnnx, "version", ExportOnnx.version + 1)
    raised = key_of(ExportOnnx(), run)
    assert raised != plain
    monkeypatch.setattr(ExportOnnx, "libraries", ())
    assert key_of(ExportOnnx(), run) != raised


def test_key_of_a_step_that_times_candidates_belongs_to_the_machine_and_the_engine(run: Run) -> None:
    step = FuseGraph(fusions=({"name": "bias_gelu"},))
    plain, plain_export = key_of(step, run), key_of(ExportOnnx(), run)
    slower = changed(run, workload=run.recipe.workload.model_copy(update={"threads": 1}))
    assert key_of(step, slower) != plain
    run.machine = run.machine.model_copy(update={"cpu": "another"})
    assert key_of(step, run) != plain
    assert key_of(ExportOnnx(), run) == plain_export


def test_every_kind_of_input_has_a_resolver() -> None:
    assert set(RESOLVERS) == set(Input.__subclasses__())


def test_nothing_is_cached_in_an_empty_cache_and_disk_is_estimated(tmp_path: Path) -> None:
    recipe = load_recipe(RECIPES / "arctic-l.yaml")
    planned = make_plan(Run(recipe, Options(cache=Cache(tmp_path), weights="random")))
    assert planned.base_state == "obtain"
    assert all(step.state == "run" for step in planned.steps)
    weights = 4 * recipe.base.body.parameters
    assert planned.missing_bytes == weights * (1 + len(planned.steps))
    assert list(tmp_path.iterdir()) == []


class FakeMaker:
    """Seals an empty artifact under each item's key, as the real one does after minutes."""

    def __init__(self, cache: Cache, folder: Path) -> None:
        self.cache = cache
        self.keys: dict[int | None, str] = {}
        self._folder = folder

    def __call__(self, item: Item) -> Stage:
        assert item.key is not None
        self.keys[item.index] = item.key
        kind = Kind.CHECKPOINT if item.step is None else item.step.gives
        staging = self._folder / item.key
        main = staging / kind.main_file
        main.parent.mkdir(parents=True)
        main.write_text(item.label)
        artifact = seal(staging, self.cache.artifact(item.key), kind, "random")
        report = self.cache.report(item.key)
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(StepOutcome().model_dump_json())
        return Stage(item, artifact)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[[str], Run]:
    """A run of one of `RECIPES_OF_ALL_STEPS`, with the files that its steps name."""
    (tmp_path / "corpus.jsonl").write_text('{"text": "red shoe"}\n')
    (tmp_path / "pairs.jsonl").write_text(
        '{"anchor": "red shoe", "positive": "a red shoe"}\n{"anchor": "oak desk", "positive": "an oak desk"}\n'
    )

    def make(name: str) -> Run:
        base = load_recipe(RECIPES / "minilm-l6.yaml")
        steps = tuple(TypeAdapter(Step).validate_python(step) for step in RECIPES_OF_ALL_STEPS[name])
        recipe: Recipe = base.model_copy(update={"steps": steps}).placed_in(tmp_path)
        return Run(recipe, Options(cache=Cache(tmp_path / "cache")), measure_layers=measure_layers)

    return make


def measure_layers(run: Run) -> LayerTimes:
    """A measurement of the layers, kept where the next plan finds it."""
    sizes = {1: {8: 1.0}, 12: {8: 2.0}}
    times = LayerTimes(fixed={8: 1.0}, attention=sizes, feed_forward=sizes)
    run.layer_times_path.parent.mkdir(parents=True, exist_ok=True)
    run.layer_times_path.write_text(times.model_dump_json())
    return times


def test_recipes_of_this_test_hold_every_kind_of_step() -> None:
    used = {step["step"] for steps in RECIPES_OF_ALL_STEPS.values() for step in steps}
    assert used == set(STEPS)


@pytest.mark.parametrize("name", RECIPES_OF_ALL_STEPS)
def test_plan_prints_the_keys_that_apply_uses(name: str, make_run: Callable[[str], Run], tmp_path: Path) -> None:
    applied = make_run(name)
    assert [step.state for step in make_plan(applied).steps] == ["run"] * len(list(items_of(applied)))
    maker = FakeMaker(applied.cache, tmp_path / "staging")
    for _ in walk(applied, maker, work=True):
        pass
    planned = make_plan(make_run(name))
    assert planned.base_key == maker.keys.pop(None)
    assert {step.index: step.key for step in planned.steps} == maker.keys
    assert {step.state for step in planned.steps} == {"cached"}
    assert planned.missing_bytes == 0


def items_of(run: Run) -> Iterator[Item]:
    """The items of a run that are steps."""
    return (item for item, _ in walk(run, lambda _: None, work=False) if item.step is not None)


def test_plan_stops_naming_keys_after_the_first_missing_step(make_run: Callable[[str], Run], tmp_path: Path) -> None:
    run = make_run("onnx")
    maker = FakeMaker(run.cache, tmp_path / "staging")
    for item, _ in walk(run, maker, work=True):
        if item.index == 0:
            break
    states = [(step.state, step.key is not None) for step in make_plan(make_run("onnx")).steps]
    assert states == [("cached", True), ("run", True), ("run", False)]


def test_baseline_export_comes_before_steps_of_another_start(make_run: Callable[[str], Run]) -> None:
    assert next(items_of(make_run("openvino"))).index == BASELINE_INDEX
    assert [item.index for item in items_of(make_run("onnx"))] == [0, 1, 2]


@pytest.mark.parametrize("name", ["fuse_graph", "1"])
def test_from_names_a_step_by_name_or_number(name: str, make_run: Callable[[str], Run]) -> None:
    assert start_index(make_run("onnx").recipe, name) == 1


@pytest.mark.parametrize("name", ["nothing", "3", "-1"])
def test_from_with_an_unknown_step_lists_the_recipes_steps(name: str, make_run: Callable[[str], Run]) -> None:
    with pytest.raises(RecipeError, match="it has export_onnx, fuse_graph, quantize_dynamic"):
        start_index(make_run("onnx").recipe, name)


def test_base_is_not_found_until_the_walk_has_passed_it(make_run: Callable[[str], Run], tmp_path: Path) -> None:
    run = make_run("openvino")
    assert run.base is None
    first: list[Artifact] = []
    for _, stage in walk(run, FakeMaker(run.cache, tmp_path / "staging"), work=True):
        first.append(stage.artifact if stage else pytest.fail("nothing was made"))
    assert run.base == first[0]
    assert run.export == first[1]


def test_step_that_needs_layer_latencies_is_planned_without_a_key_until_they_are_measured(make_run: Callable[[str], Run]) -> None:
    step = PruneStructured(latency_ratio=0.5)
    run = make_run("openvino")
    assert resolve(step, run, work=False) is None
    assert resolve(step, run, work=True) is not None
    assert resolve(step, run, work=False) is not None


def test_plan_predicts_the_latency_of_the_pruned_body_once_layers_are_measured(make_run: Callable[[str], Run]) -> None:
    run = make_run("openvino")
    pruning = next(step for step in make_plan(run).steps if step.step == "prune_structured")
    assert (pruning.predicted_ms, pruning.whole_ms) == (None, None)
    measure_layers(run)
    predicted = {step.step: (step.predicted_ms, step.whole_ms) for step in make_plan(run).steps}
    before, after = predicted["prune_structured"]
    assert before is not None
    assert after is not None
    assert before[8] < after[8] == 1 + 6 * (2 + 2)
    assert predicted["export_onnx"] == (None, None)


def test_key_changes_with_the_content_of_a_file(make_run: Callable[[str], Run], tmp_path: Path) -> None:
    step = make_run("openvino").recipe.steps[0]
    before = key_of(step, make_run("openvino"))
    (tmp_path / "corpus.jsonl").write_text('{"text": "blue shoe"}\n')
    assert key_of(step, make_run("openvino")) != before
