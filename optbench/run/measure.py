"""Measuring what the steps made: fidelity and accuracy after each, then the latency of all in one interleaved run."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

import optbench
from optbench.artifact.folder import Artifact, Weights
from optbench.engines import Engine, OnnxRuntime, OpenVino, Torch
from optbench.engines.onednn import is_off_amx
from optbench.errors import EngineError, MeasureError, StepError, TaskError
from optbench.machine.cpu import Isa, Machine, read_machine, usable_threads
from optbench.measure.accuracy import AccuracyResult, measure_accuracy
from optbench.measure.encoding import TextEncoder
from optbench.measure.fidelity import Fidelity, measure_fidelity
from optbench.measure.latency import Cell, ServingTimes, Timing, measure_latency, measure_serving
from optbench.measure.load.concurrency import run_scenarios
from optbench.measure.load.report import ScenarioReport
from optbench.measure.machine_state import check_environment
from optbench.measure.stability import Stability, measure_stability
from optbench.measure.timing_warnings import timing_warnings
from optbench.model.checkpoint import read_prompts
from optbench.model.tokenizer import encode_batch, load_tokenizer
from optbench.recipe.schema import Recipe
from optbench.record.record import Point, Record
from optbench.run.make import Listener, Stage
from optbench.run.plan import Cache, library_versions
from optbench.steps import Step
from optbench.tasks import PairData, RetrievalData, Task, load_tasks

__all__ = [
    "Numbers",
    "NumbersGauge",
    "baseline_cells",
    "gauge_stability",
    "int8_warnings",
    "make_record",
    "query_rows",
    "sample_texts",
    "serve_scenarios",
    "time_serving",
    "time_stages",
]

logger = logging.getLogger(__name__)

SERVING_TEXTS = 100
RANDOM_TEXTS = 32
RECORDED_LIBRARIES = ("torch", "transformers", "onnx", "onnxruntime", "openvino", "nncf", "tokenizers", "numpy")


@dataclass(frozen=True)
class Numbers:
    """What a stage's embeddings say.

    Attributes:
        to_source: cosine to the stage before; None for the base.
        to_base: cosine to the base in torch fp32; None for the base itself.
        accuracy: one entry a task; empty with random weights.
    """

    to_source: Fidelity | None
    to_base: Fidelity | None
    accuracy: tuple[AccuracyResult, ...]


class NumbersGauge:
    """Measures stage after stage against the one before and against the base, on the recipe's own texts."""

    def __init__(self, recipe: Recipe, tasks: Sequence[Task], cache: Cache, weights: Weights, isa: Isa | None, listener: Listener) -> None:
        """Loads the tasks.

        Args:
            recipe: for the engines and the floors.
            tasks: what accuracy is measured on.
            cache: keeps embeddings.
            weights: real or random.
            isa: run as a CPU with this instruction set would.
            listener: is told.
        """
        self.warnings: list[str] = []
        self.data: list[RetrievalData | PairData] = load_tasks(tasks)
        # With random weights fidelity only says that the graph still computes the same function; few texts say that.
        self.queries, self.documents = sample_texts(self.data, RANDOM_TEXTS if weights == "random" else recipe.fidelity.texts)
        self._recipe, self._cache, self._isa, self._listener = recipe, cache, isa, listener
        self._base: NDArray[np.float32] | None = None
        self._before: NDArray[np.float32] | None = None
        self._base_stage: Stage | None = None

    def measure(self, stage: Stage) -> Numbers:
        """Measure one stage.

        Raises:
            StepError: the step moved the embeddings further than the recipe's floor allows (real weights only).
            MeasureError: the base finds nothing on a task (real weights only).
        """
        self._listener.begin(f"{stage.label}: accuracy" if stage.artifact.weights == "real" else f"{stage.label}: fidelity")
        engine = self._recipe.engine_for(stage.artifact.kind)
        isa = self._isa
        if _refuses(engine, isa):
            self.warnings.append(f"{stage.label}: accuracy and cosine are those of the whole CPU: {engine.engine} cannot be held to {isa}")
            isa = None
        with TextEncoder(stage.artifact, engine, self._cache.embeddings, isa=isa, progress=self._listener.update) as encode:
            vectors = np.concatenate([encode(self.queries, "query"), encode(self.documents, "document")])
            to_source = None if self._before is None else measure_fidelity(self._before, vectors)
            to_base = None if self._base is None else measure_fidelity(self._base, vectors)
            self._before = vectors
            if self._base is None:
                self._base = vectors
            if to_source is not None and to_base is not None:
                self._check_floor(stage, *judged_fidelity(stage.step, to_source, to_base))
            accuracy: tuple[AccuracyResult, ...] = ()
            if stage.artifact.weights == "real":
                accuracy = self._accuracy(stage, encode)
        parts = [f"{result.main_metric} {result.mean(result.main_metric):.4f} on {result.task}" for result in accuracy]
        if to_base is not None:
            parts.append(f"cosine to fp32 {to_base.mean:.4f}, worst {to_base.minimum:.4f}")
        self._listener.end("; ".join(parts) or "reference")
        return Numbers(to_source, to_base, accuracy)

    def _accuracy(self, stage: Stage, encode: TextEncoder) -> tuple[AccuracyResult, ...]:
        """A stage's accuracy on every task; that of the stages after the base beside the base's."""
        if self._base_stage is None:
            self._base_stage = stage
            results = tuple(measure_accuracy(encode, data, on_window=encode.begin_part) for data in self.data)
            check_base_scores(results)
            return results
        base, engine = self._base_stage.artifact, self._recipe.engine_for(self._base_stage.artifact.kind)
        isa = None if _refuses(engine, self._isa) else self._isa
        # What the base has embedded lies in the cache: it is read again, and nothing is opened.
        with TextEncoder(base, engine, self._cache.embeddings, isa=isa) as base_encode:
            return tuple(measure_accuracy(encode, data, base=base_encode, on_window=encode.begin_part) for data in self.data)

    def _check_floor(self, stage: Stage, fidelity: Fidelity, reference: str) -> None:
        floor = self._recipe.fidelity
        if fidelity.mean >= floor.cosine_mean_min and fidelity.minimum >= floor.cosine_min:
            return
        said = (
            f"{stage.label}: moved the embeddings too far: cosine to {reference} is {fidelity.mean:.4f} in the mean and "
            f"{fidelity.minimum:.4f} at worst over {fidelity.n_texts} texts, where the recipe wants {floor.cosine_mean_min} and "
            f"{floor.cosine_min}"
        )
        if stage.artifact.weights == "random":
            self.warnings.append(said + "; the weights are random, so the run goes on")
            return
        raise StepError(f"{said}; use a gentler setting for this step, or lower fidelity in the recipe if that is wanted")


def check_base_scores(results: Sequence[AccuracyResult]) -> None:
    """See that there is something to lose on every task, before minutes go into steps that could not be judged.

    Raises:
        MeasureError: the fp32 base scores 0 or less on a task.
    """
    for result in results:
        if result.mean() <= 0:
            raise MeasureError(
                f"{result.task}: the fp32 base's {result.main_metric} is {result.mean():.4f}, so no loss can be told against it; check "
                "that pooling and prompts are the model's own and that the task is in its language, or leave the task out"
            )


def judged_fidelity(step: Step | None, to_source: Fidelity, to_base: Fidelity) -> tuple[Fidelity, str]:
    """What the floor is held against, and its name: a step that recovers towards the base moves on purpose, and is to come near that."""
    return (to_base, "the base") if step is not None and step.needs_base else (to_source, "the step's source")


def sample_texts(data: Sequence[RetrievalData | PairData], count: int) -> tuple[list[str], list[str]]:
    """`count` texts of the tasks, half queries and half documents, in the tasks' own order."""
    queries = [each.queries for each in data if isinstance(each, RetrievalData)]
    documents: list[Mapping[Any, str]] = [
        each.documents if isinstance(each, RetrievalData) else dict(enumerate(each.first)) for each in data
    ]
    half = min(count // 2, sum(map(len, queries)))
    return _spread(queries, half), _spread(documents, count - half)


def _spread(sources: Sequence[Mapping[Any, str]], count: int) -> list[str]:
    """`count` texts, evenly spread, as files are often sorted by subject; only those are read."""
    total = sum(map(len, sources))
    count = min(count, total)
    chosen = {index * total // count for index in range(count)}
    names = ((source, name) for source in sources for name in source)
    return [source[name] for index, (source, name) in enumerate(names) if index in chosen]


def baseline_cells(recipe: Recipe, base: Artifact, export: Artifact) -> list[Cell]:
    """The fp32 baselines: torch eager on the checkpoint, and both runtimes on its plain export."""
    threads = recipe.workload.threads
    engines: list[tuple[str, Artifact, Engine]] = [
        ("torch fp32", base, Torch(engine="torch", threads=threads)),
        ("onnxruntime fp32", export, OnnxRuntime(engine="onnxruntime", threads=threads)),
        ("openvino fp32", export, OpenVino(engine="openvino", threads=threads)),
    ]
    return [
        Cell(label=label, kind=artifact.kind, path=artifact.path, sha256=artifact.sha256, engine=engine)
        for label, artifact, engine in engines
    ]


def time_stages(
    recipe: Recipe, stages: Sequence[Stage], baselines: Sequence[Cell], isa: Isa | None, listener: Listener
) -> tuple[dict[str, str], tuple[Timing, ...], list[str]]:
    """Time every stage and every baseline in one interleaved run; equal ones once.

    Returns:
        timing labels by stage label, the timings, and warnings.
    """
    warnings = list(check_environment())
    cells: dict[tuple[str, str], Cell] = {}
    labels = {}
    wanted = [*baselines]
    for stage in stages:
        artifact = stage.artifact
        engine = recipe.engine_for(artifact.kind)
        wanted.append(Cell(label=stage.label, kind=artifact.kind, path=artifact.path, sha256=artifact.sha256, engine=engine))
    for cell in wanted:
        refusal = _refuses(cell.engine, isa)
        if refusal:
            warnings.append(f"{cell.label}: not timed: {refusal}")
            continue
        labels[cell.label] = cells.setdefault((cell.sha256, cell.engine.model_dump_json()), cell).label
    if isa is None and any(stage.step is not None and stage.step.step == "quantize_static" for stage in stages):
        warnings += int8_warnings(read_machine())
    listener.begin("latency")
    workload = recipe.workload
    timings = measure_latency(
        list(cells.values()),
        workload.lengths,
        batch=workload.batch,
        rounds=workload.rounds,
        processes=workload.processes,
        isa=isa,
        progress=listener.update,
    )
    listener.end(f"{len(timings)} models at {len(workload.lengths)} lengths, {workload.rounds} rounds")
    return labels, timings, warnings


def int8_warnings(machine: Machine) -> list[str]:
    """What keeps OpenVINO's static int8 from this CPU's best, in words."""
    if is_off_amx(machine):
        return ["OpenVINO's int8 was kept off AMX, where it is broken for inputs of any length (its issue 37577)"]
    if not machine.has_vnni:
        return ["this CPU has no VNNI: with OpenVINO, int8 gains little on it or costs time"]
    return []


def _refuses(engine: Engine, isa: Isa | None) -> str:
    """Why an engine cannot be held to an instruction set; empty where it can."""
    try:
        if isa is not None:
            engine.environment(isa)
    except EngineError as error:
        return str(error)
    return ""


def time_serving(stage: Stage, recipe: Recipe, gauge: NumbersGauge, isa: Isa | None, listener: Listener) -> ServingTimes | None:
    """Tokenization and inference of the final artifact on real queries; None without queries, or where its engine refuses `isa`."""
    texts = gauge.queries[:SERVING_TEXTS]
    engine = recipe.engine_for(stage.artifact.kind)
    if not texts or _refuses(engine, isa):
        return None
    listener.begin("serving")
    times = measure_serving(stage.artifact, engine, texts, "query", isa)
    listener.end(f"{len(texts)} queries")
    return times


def gauge_stability(
    stage: Stage, recipe: Recipe, gauge: NumbersGauge, cache: Cache, isa: Isa | None, listener: Listener
) -> Stability | None:
    """How the final artifact's vectors move with what surrounds a text; None where the recipe does not ask, or the engine refuses `isa`."""
    floor, engine = recipe.stability, recipe.engine_for(stage.artifact.kind)
    if floor is None or _refuses(engine, isa):
        return None
    listener.begin("stability")
    with TextEncoder(stage.artifact, engine, cache.embeddings, isa=isa, progress=listener.update) as encode:
        documents = encode(gauge.documents, "document")
    texts, prompt = (gauge.queries, "query") if gauge.queries else (gauge.documents, "document")
    stability = measure_stability(
        stage.artifact,
        engine,
        texts[: floor.texts],
        documents=documents,
        prompt=prompt,
        isa=isa,
        isas=floor.isas,
        progress=listener.update,
    )
    listener.end(f"{stability.n_texts} texts under {len(stability.rows)} conditions")
    return stability


def query_rows(artifact: Artifact, data: Sequence[RetrievalData | PairData]) -> list[NDArray[np.int64]]:
    """The token ids of every real query with its prompt, (tokens,) each, as a service would send them.

    Raises:
        TaskError: the tasks have no queries.
    """
    queries = [text for each in data for text in (each.queries.values() if isinstance(each, RetrievalData) else each.first)]
    if not queries:
        raise TaskError("scenarios: the tasks have no queries; name one that has, such as --task retail")
    tokenizer, prompt = load_tokenizer(artifact.path), read_prompts(artifact.path).query
    return [encode_batch(tokenizer, [prompt + query])[0][0] for query in queries]


def serve_scenarios(stage: Stage, recipe: Recipe, gauge: NumbersGauge, isa: Isa | None, listener: Listener) -> ScenarioReport | None:
    """The final artifact under a service's load; None where the recipe does not ask for it, or the engine refuses `isa`."""
    wanted, engine = recipe.scenarios, recipe.engine_for(stage.artifact.kind)
    if wanted is None or _refuses(engine, isa):
        return None
    listener.begin("scenarios")
    rows = query_rows(stage.artifact, gauge.data)
    report = run_scenarios(stage.artifact, engine, rows, **dict(wanted), isa=isa, progress=listener.update)
    listener.end(f"{len(report.models)} concurrency models, p99 limit {report.limit_ms:.3g} ms")
    return report


def make_record(
    recipe: Recipe,
    base: str,
    stages: Sequence[Stage],
    numbers: Sequence[Numbers],
    timed: tuple[Mapping[str, str], tuple[Timing, ...], Sequence[str]],
    baselines: Sequence[Cell],
    serving: ServingTimes | None,
    stability: Stability | None,
    scenarios: ScenarioReport | None,
    isa: Isa | None,
    warnings: Sequence[str],
) -> Record:
    """Put a run's measurements into a record."""
    labels, timings, untimed = timed
    loaded = [f"scenarios: {note}" for note in scenarios.notes] if scenarios else []
    random = ["the weights are random: latency is true, accuracy means nothing"] if stages[0].artifact.weights == "random" else []
    points = []
    for stage, number in zip(stages, numbers, strict=True):
        engine: dict[str, Any] = recipe.engine_for(stage.artifact.kind).model_dump(mode="json")
        points.append(
            Point(
                label=stage.label,
                step=None if stage.step is None else stage.step.model_dump(mode="json"),
                kind=stage.artifact.kind,
                artifact_sha256=stage.artifact.sha256,
                size_bytes=stage.artifact.size_bytes,
                engine=engine,
                timing=labels.get(stage.label),
                cached=stage.cached,
                seconds=stage.made.seconds,
                peak_rss_bytes=stage.made.peak_rss_bytes,
                report=stage.made.report,
                fidelity_to_source=number.to_source,
                fidelity_to_base=number.to_base,
                accuracy=number.accuracy,
            )
        )
    timed_labels = {timing.label for timing in timings}
    return Record(
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        optbench=optbench.__version__,
        recipe=recipe,
        recipe_sha256=recipe.sha256,
        base=base,
        weights=stages[0].artifact.weights,
        machine=read_machine(),
        isa=isa,
        threads=recipe.workload.threads or usable_threads(),
        libraries=library_versions(RECORDED_LIBRARIES),
        points=tuple(points),
        timings=timings,
        baselines=tuple(cell.label for cell in baselines if cell.label in timed_labels),
        serving=serving,
        stability=stability,
        scenarios=scenarios,
        warnings=(*random, *warnings, *untimed, *timing_warnings(timings), *loaded),
    )
