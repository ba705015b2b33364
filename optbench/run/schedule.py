"""What a run is expected to take, stage by stage: rough seconds, which the run itself corrects as its stages end."""

from collections.abc import Iterator

from optbench.run.listener import ExpectedStage
from optbench.run.measure import TaskData
from optbench.run.plan import BASELINE_EXPORT, BASELINE_INDEX, Plan, Run
from optbench.tasks import RetrievalData

__all__ = ["expected_stages"]

# Of one Zen 5 core: OpenVINO's fp32 products of BERT-large took 204 ms at 128 tokens on two.
MULTIPLY_ADDS_PER_S = 0.1e12
CHARACTERS_A_TOKEN = 4.5
# A process starts, imports an engine and opens the model.
OPEN_SECONDS, OPEN_BYTES_PER_S = 2.0, 1e9
# Finding the vectors of an artifact in the cache, and scoring them.
CACHED_SECONDS = 1.0
# As `optbench.measure.latency` times: runs before the first process is warm, a block a length, and what else a round takes.
WARM_RUNS, BLOCK_SECONDS, BETWEEN_SECONDS = 20, 0.04, 0.05
SERVING_ENCODES = 100 * 5 * 2
STABILITY_CONDITIONS, STABILITY_PROCESSES = 9, 3
# The docstring of a recipe's `scenarios.seconds`.
SCENARIO_RUNS = 30


def expected_stages(run: Run, plan: Plan, data: TaskData) -> tuple[ExpectedStage, ...]:
    """The stages of `apply` in order, under the labels that a listener is told; `data` are the run's loaded tasks."""
    return tuple(_stages(run, plan, data))


def _stages(run: Run, plan: Plan, data: TaskData) -> Iterator[ExpectedStage]:
    recipe, size = run.recipe, 4 * run.recipe.base.body.parameters
    judged = _tokens(data) * _seconds_a_token(run) + OPEN_SECONDS
    verified = size / OPEN_BYTES_PER_S
    what = "accuracy" if run.options.weights == "real" else "fidelity"
    if what == "fidelity":
        judged = OPEN_SECONDS + verified

    def evaluated(label: str, state: str) -> ExpectedStage:
        cached = state == "cached"
        return ExpectedStage(f"{label}: {what}", f"{what} {state}", CACHED_SECONDS if cached else judged, several_passes=True)

    yield ExpectedStage("base", "base", verified if plan.base_state == "cached" else 4 * verified)
    yield evaluated("base", plan.base_state)
    for planned in plan.steps:
        baseline = planned.index == BASELINE_INDEX
        label = "baseline export" if baseline else f"{planned.index} {planned.step}"
        step = BASELINE_EXPORT if baseline else recipe.steps[planned.index]
        seconds = verified if planned.state == "cached" else step.expected_seconds(recipe.base.body)
        yield ExpectedStage(label, f"step {planned.state}", seconds)
        if not baseline:
            yield evaluated(label, planned.state)
    yield ExpectedStage("latency", "latency", _latency_seconds(run, len(plan.steps)))
    encode = 16 * _seconds_a_token(run)
    if any(isinstance(each, RetrievalData) for each in data):
        yield ExpectedStage("serving", "serving", OPEN_SECONDS + SERVING_ENCODES * encode)
    if recipe.stability is not None:
        passes = STABILITY_CONDITIONS * recipe.stability.texts * encode
        yield ExpectedStage("stability", "stability", passes + STABILITY_PROCESSES * OPEN_SECONDS)
    if recipe.scenarios is not None:
        yield ExpectedStage("scenarios", "scenarios", SCENARIO_RUNS * recipe.scenarios.seconds)
    yield ExpectedStage("export", "export", verified)


def _seconds_a_token(run: Run) -> float:
    body, threads = run.recipe.base.body, run.recipe.workload.threads or run.machine.usable_threads
    return body.multiply_adds(16) / 16 / (MULTIPLY_ADDS_PER_S * threads)


def _tokens(data: TaskData) -> float:
    texts = [
        text
        for each in data
        for group in ((each.queries.values(), each.documents.values()) if isinstance(each, RetrievalData) else (each.first, each.second))
        for text in group
    ]
    return sum(map(len, texts)) / CHARACTERS_A_TOKEN


def _latency_seconds(run: Run, steps: int) -> float:
    """Three fp32 baselines, of which one is the base, and the steps."""
    workload, models = run.recipe.workload, 3 + steps
    runs = [length * workload.batch * _seconds_a_token(run) for length in workload.lengths]
    opened = OPEN_SECONDS + 4 * run.recipe.base.body.parameters / OPEN_BYTES_PER_S
    blocks = sum(max(BLOCK_SECONDS, seconds) for seconds in runs) + BETWEEN_SECONDS
    warm = workload.processes * opened + (WARM_RUNS + 2 * workload.processes) * sum(runs)
    return models * (workload.rounds * blocks + warm)
