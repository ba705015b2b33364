"""Everything that a run measures of its stages, and the record of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import optbench
from optbench.artifact.folder import Artifact
from optbench.base.origin import read_origin
from optbench.engines import Engine
from optbench.engines.onnxruntime import OnnxRuntime
from optbench.engines.openvino import OpenVino
from optbench.engines.torch import Torch
from optbench.machine.cpu import read_machine, usable_threads
from optbench.machine.versions import library_versions
from optbench.measure.latency import ServingTimes, Timing, measure_serving
from optbench.measure.load.report import ScenarioReport
from optbench.measure.machine_state import check_machine_state
from optbench.measure.stability import Stability
from optbench.measure.subject import Subject
from optbench.measure.timing_warnings import timing_warnings
from optbench.record.record import Point, Record
from optbench.run.evaluate import StageEvaluator, StageQuality, stage_subject
from optbench.run.listener import Listener
from optbench.run.measure import TaskTexts, measure_load, measure_text_stability, time_subjects
from optbench.run.plan import Run, Stage, source_name

__all__ = ["LatencyRun", "Served", "baseline_subjects", "make_record", "measure_served", "time_stages"]

SERVING_TEXTS = 100
RECORDED_LIBRARIES = ("torch", "transformers", "onnx", "onnxruntime", "openvino", "nncf", "tokenizers", "numpy")


@dataclass(frozen=True)
class LatencyRun:
    """One interleaved timing of all stages and baselines.

    Attributes:
        labels: by stage label, the label of its timing: stages with equal artifacts and engines are timed once.
        baselines: the labels of the fp32 baselines that were timed.
    """

    labels: Mapping[str, str]
    timings: tuple[Timing, ...]
    baselines: tuple[str, ...]
    warnings: tuple[str, ...]


def baseline_subjects(run: Run) -> list[Subject]:
    """The fp32 baselines: torch eager on the base, and both runtimes on its plain export; those whose artifact exists."""
    threads, isa = run.recipe.workload.threads, run.options.isa
    engines: list[tuple[Artifact | None, Engine]] = [
        (run.base, Torch(engine="torch", threads=threads)),
        (run.export, OnnxRuntime(engine="onnxruntime", threads=threads)),
        (run.export, OpenVino(engine="openvino", threads=threads)),
    ]
    return [Subject(artifact, engine, isa, f"{engine.engine} fp32") for artifact, engine in engines if artifact is not None]


def time_stages(run: Run, stages: Sequence[Stage], listener: Listener) -> LatencyRun:
    """Time every stage and every baseline in one interleaved run, equal ones once."""
    warnings = list(check_machine_state())
    baselines = baseline_subjects(run)
    distinct: dict[tuple[str, str], Subject] = {}
    labels: dict[str, str] = {}
    for subject in [*baselines, *(stage_subject(stage, run) for stage in stages)]:
        if subject.refusal:
            warnings.append(f"{subject.label}: not timed: {subject.refusal}")
            continue
        labels[subject.label] = distinct.setdefault((subject.artifact.sha256, subject.engine.model_dump_json()), subject).label
    limit = "" if run.options.isa is None else f"as {run.options.isa}: "
    warnings += dict.fromkeys(limit + text for stage in stages if stage.step for text in stage.step.machine_warnings(run.machine))
    timings = time_subjects(list(distinct.values()), run.recipe.workload, listener)
    timed = tuple(subject.label for subject in baselines if not subject.refusal)
    return LatencyRun(labels, timings, timed, (*warnings, *timing_warnings(timings)))


@dataclass(frozen=True)
class Served:
    """What only the last stage is measured for.

    None where the recipe does not ask for it, or where the engine cannot be held to the instruction set.
    """

    serving: ServingTimes | None = None
    stability: Stability | None = None
    scenarios: ScenarioReport | None = None


def measure_served(run: Run, stage: Stage, evaluator: StageEvaluator, listener: Listener) -> Served:
    """Measure the last stage as a service would use it."""
    subject, recipe, texts = stage_subject(stage, run), run.recipe, evaluator.texts
    if subject.refusal:
        return Served()
    serving, stability, scenarios = None, None, None
    if texts.queries:
        listener.begin("serving")
        queries = texts.queries[:SERVING_TEXTS]
        serving = measure_serving(subject, queries, "query")
        listener.end(f"{len(queries)} queries")
    if recipe.stability is not None:
        listener.begin("stability")
        sample = TaskTexts(texts.queries[: recipe.stability.texts], texts.documents)
        stability = measure_text_stability(subject, sample, run.cache, recipe.stability.isas, listener.update)
        listener.end(f"{stability.n_texts} texts under {len(stability.rows)} conditions")
    if recipe.scenarios is not None:
        listener.begin("scenarios")
        scenarios = measure_load(subject, evaluator.data, recipe.scenarios, listener.update)
        listener.end(f"{len(scenarios.models)} concurrency models, p99 limit {scenarios.limit_ms:.3g} ms")
    return Served(serving, stability, scenarios)


def make_record(
    run: Run, stages: Sequence[tuple[Stage, StageQuality]], latency: LatencyRun, served: Served, warnings: Sequence[str]
) -> Record:
    """Put a run's measurements into a record; `stages` are the base and the steps in order, `warnings` come from evaluating them."""
    recipe, base = run.recipe, stages[0][0].artifact
    random = ["the weights are random: latency is true, accuracy means nothing"] if base.weights == "random" else []
    load = [f"scenarios: {note}" for note in served.scenarios.notes] if served.scenarios else []
    points = [
        Point(
            label=stage.label,
            step=None if stage.step is None else stage.step.model_dump(mode="json"),
            kind=stage.artifact.kind,
            artifact_sha256=stage.artifact.sha256,
            size_bytes=stage.artifact.size_bytes,
            engine=stage_subject(stage, run).engine_options,
            timing=latency.labels.get(stage.label),
            cached=stage.cached,
            seconds=stage.outcome.seconds,
            peak_rss_bytes=stage.outcome.peak_rss_bytes,
            report=stage.outcome.report,
            fidelity_to_source=quality.to_source,
            fidelity_to_base=quality.to_base,
            hostile_to_source=quality.hostile_to_source,
            hostile_to_base=quality.hostile_to_base,
            accuracy=quality.accuracy,
        )
        for stage, quality in stages
    ]
    return Record(
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        optbench=optbench.__version__,
        recipe=recipe,
        recipe_sha256=recipe.sha256,
        base=source_name(run),
        weights=base.weights,
        machine=read_machine(),
        isa=run.options.isa,
        threads=recipe.workload.threads or usable_threads(),
        libraries=library_versions(RECORDED_LIBRARIES),
        points=tuple(points),
        timings=latency.timings,
        baselines=latency.baselines,
        serving=served.serving,
        stability=served.stability,
        scenarios=served.scenarios,
        warnings=(*random, *read_origin(base.path).warnings, *stages[0][0].outcome.report.warnings, *warnings, *latency.warnings, *load),
    )
