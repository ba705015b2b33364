"""distill: nearer to its base, the same each time, resuming after a kill, and refusing data that would mean nothing."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from optbench.artifact.folder import Artifact, open_artifact
from optbench.artifact.manifest import Kind
from optbench.engines.torch import Torch
from optbench.errors import MissingExtraError, StepError
from optbench.machine.cpu import read_machine
from optbench.model.checkpoint import Prompts
from optbench.model.tokenizer import encode_batch, load_tokenizer
from optbench.model.torch_model import encoder_layers
from optbench.steps.base import BaseCheckpoint, CalibrationTexts, EvaluationTexts, Input, ResumeFolder, StepContext, StepReport
from optbench.steps.distill import Distill, _warnings
from optbench.steps.training.distillation import (
    LossWeights,
    Teacher,
    _relation_distance,
    default_batch,
    default_learning_rate,
    distillation_loss,
    map_layers,
)
from optbench.steps.training.model import PRIMITIVE_CACHE, PRIMITIVES_KEPT, build_trainable, torch_body, use_bf16
from optbench.steps.training.trainer import Trained
from optbench.tasks import JudgedTexts
from tests.steps.training.conftest import draw_texts

# fp32, so that the figures are the same on a CPU with bf16 and on one without.
STEP = Distill(batch=8, learning_rate=1e-3, epochs=2, evaluations=3, precision="fp32", excerpts=0)


def inputs(base: Artifact, texts: list[str], judged: JudgedTexts | None = None, folder: Path | None = None) -> dict[type[Input[Any]], Any]:
    values: dict[type[Input[Any]], Any] = {CalibrationTexts: texts, BaseCheckpoint: base, EvaluationTexts: judged or JudgedTexts()}
    return values if folder is None else {**values, ResumeFolder: folder}


@dataclass(frozen=True)
class Run:
    base: Artifact
    student: Artifact
    out: Path
    report: StepReport


@pytest.fixture(scope="module")
def base(make_checkpoint: Callable[..., Artifact]) -> Artifact:
    return make_checkpoint()


@pytest.fixture(scope="module")
def student(base: Artifact, make_student: Callable[..., Artifact]) -> Artifact:
    return make_student(base)


@pytest.fixture
def make_out(tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        (tmp_path / name).mkdir()
        return tmp_path / name

    return make


@pytest.fixture(scope="module")
def run(base: Artifact, student: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("distill")
    (folder / "out").mkdir()
    context = StepContext(
        scratch=folder,
        machine=read_machine(),
        values=inputs(base, draw_texts(120)),
    )
    return Run(base, student, folder / "out", STEP.run(student, folder / "out", context))


def embed(folder: Path, texts: list[str]) -> NDArray[np.float32]:
    artifact = Artifact(Kind.CHECKPOINT, folder, "", "random")
    session = Torch(engine="torch").open(artifact)
    rows = session.embed(*encode_batch(load_tokenizer(folder), texts))
    session.close()
    return rows


def test_student_comes_nearer_to_its_base_on_texts_it_has_not_seen(run: Run) -> None:
    texts = [text for text in draw_texts(100, seed=9) if text not in set(draw_texts(120))]
    whole = embed(run.base.path, texts)
    before, after = ((1 - (whole * embed(folder, texts)).sum(1)).mean() for folder in (run.student.path, run.out))
    assert after < 0.4 * before


def test_source_is_as_it_was_and_tables_are_kept(run: Run) -> None:
    from safetensors.torch import load_file

    open_artifact(run.student.path)
    before, after = load_file(run.student.main_file), load_file(run.out / "model.safetensors")
    same = {name for name, tensor in after.items() if (tensor == before[name]).all()}
    assert {name for name in after if name.startswith("embeddings.")} == same


def test_report_says_what_was_done(run: Run) -> None:
    facts: dict[str, Any] = dict(run.report.facts)
    assert facts["texts"] + facts["held_out_texts"] == 120
    assert (facts["steps"], facts["planned_steps"], facts["stopped"]) == (28, 28, "epochs")
    curve = facts["loss_curve"]
    assert (curve[0][0], curve[0][1]) == (0, None)
    assert curve[-1][0] == 28
    assert curve[-1][2] < 0.5 * curve[0][2]
    assert facts["layer_map"] == [0, 1]
    assert facts["peak_rss_bytes"] > 50e6
    assert run.report.warnings == ()


def test_killed_run_resumes_and_ends_as_the_unbroken_one(
    run: Run, make_out: Callable[[str], Path], make_context: Callable[..., StepContext], no_trace: Path
) -> None:
    unfinished = make_out("unfinished")
    context = make_context(values=inputs(run.base, draw_texts(120), folder=unfinished))

    def kill(message: str, share: float | None) -> None:
        if message.startswith("step 22 "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        STEP.run(run.student, make_out("first"), replace(context, progress=kill))
    assert list(make_out("x").parent.joinpath("first").iterdir()) == []
    # A checkpoint that was being written when the power went.
    (unfinished / "checkpoints" / "checkpoint-21").mkdir()
    second = make_out("second")
    report = STEP.run(run.student, second, context)
    assert report.facts["resumed_from"] == 20
    assert report.facts["loss_curve"] == run.report.facts["loss_curve"]
    assert (second / "model.safetensors").read_bytes() == (run.out / "model.safetensors").read_bytes()
    assert list(no_trace.iterdir()) == []


def test_cached_vectors_relations_excerpts_and_the_clock(
    run: Run, make_out: Callable[[str], Path], make_context: Callable[..., StepContext]
) -> None:
    context = make_context(values=inputs(run.base, draw_texts(120)))
    step = STEP.model_copy(update={"epochs": 1, "evaluations": 2})
    plain: Any = step.model_copy(update={"hidden_weight": 0.0}).run(run.student, make_out("vectors"), context)
    assert (context.scratch / "teacher.npy").is_file()
    assert plain.facts["loss_curve"][-1][2] < plain.facts["loss_curve"][0][2]
    fresh = replace(context, scratch=make_out("relations-scratch"))
    related: Any = step.model_copy(update={"relation_weight": 1.0}).run(run.student, make_out("relations"), fresh)
    assert related.facts["loss_curve"][-1][2] < related.facts["loss_curve"][0][2]
    fresh = replace(context, scratch=make_out("excerpts-scratch"))
    shortened: Any = step.model_copy(update={"excerpts": 1.0}).run(run.student, make_out("excerpts"), fresh)
    assert shortened.facts["texts"] > plain.facts["texts"] + 50
    assert shortened.facts["held_out_texts"] > plain.facts["held_out_texts"]
    assert shortened.facts["loss_curve"][-1][2] < shortened.facts["loss_curve"][0][2]
    fresh = replace(context, scratch=make_out("clock-scratch"))
    hurried: Any = step.model_copy(update={"epochs": 1000, "minutes": 0.005}).run(run.student, make_out("clock"), fresh)
    assert hurried.facts["stopped"] == "minutes"
    assert hurried.facts["steps"] < hurried.facts["planned_steps"] == 14000


def test_relations_are_those_of_each_text_alone() -> None:
    import torch

    torch.manual_seed(0)
    student, teacher = ([torch.randn(2, 3, 8) for _ in range(3)] for _ in range(2))
    given, wanted = ([rows.flatten(0, 1)[None] for rows in side] for side in (student, teacher))
    alone = _relation_distance(student, teacher, torch.tensor([[1, 1, 1], [2, 2, 0]]))
    packed = _relation_distance(given, wanted, torch.tensor([[1, 1, 1, 2, 2, 0]]))
    torch.testing.assert_close(packed, alone)
    assert alone > 0.1


@pytest.mark.parametrize("bf16", [False, True])
def test_teacher_computes_in_what_it_is_told(base: Artifact, student: Artifact, bf16: bool) -> None:
    import torch

    teacher, trained = build_trainable(base.path, packed=True).eval(), build_trainable(student.path, packed=True).train()
    seen: list[Any] = []
    encoder_layers(torch_body(teacher))[0].up.register_forward_hook(lambda module, given, output: seen.append(output.dtype))
    no_vectors = np.empty((0, 32), np.float32)
    loss = distillation_loss(trained, Teacher(teacher, ["red shoe"], no_vectors, (0, 1), bf16), LossWeights(1.0, 1.0, 0.0))
    loss([trained.preprocess(["red shoe"])], torch.tensor([0]))
    assert seen == [torch.bfloat16 if bf16 else torch.float32]


def test_no_excerpt_of_what_is_trained_on_is_held_out_too() -> None:
    texts = draw_texts(1000)  # of so few words that both parts have many runs in common
    no_prompts, judged = Prompts(query="", document=""), JudgedTexts(queries={"red": "shop"})
    held_out, trained_on = Distill(held_out=0.2)._split(texts, no_prompts, judged)
    alone = Distill(held_out=0.2, excerpts=0)._split(texts, no_prompts, judged)
    assert [len(part) for part in alone] == [200, 800]
    assert set(alone[0]) < set(held_out)
    assert len(trained_on) > 1000
    assert not set(held_out) & set(trained_on)
    assert "red" not in {*held_out, *trained_on}


def test_source_is_kept_where_nothing_was_better(
    run: Run, make_out: Callable[[str], Path], make_context: Callable[..., StepContext]
) -> None:
    context = make_context(values=inputs(run.base, draw_texts(100)))
    wild = STEP.model_copy(update={"learning_rate": 0.5, "epochs": 1, "patience": 1})
    report = wild.run(run.base, make_out("out"), context)
    assert report.facts["best_step"] == 0
    assert "no evaluation was better than the source" in report.warnings[0]
    assert (embed(make_out("y").parent / "out", ["red shoe"]) == embed(run.base.path, ["red shoe"])).all()


@pytest.mark.parametrize(("worst", "end", "warned"), [(0.046, 0.018, True), (0.046, 0.012, False), (0.025, 0.018, False)])
def test_rate_that_first_undid_what_pruning_fitted_is_named(worst: float, end: float, warned: bool) -> None:
    trained = Trained(
        steps=20,
        planned_steps=20,
        stopped="epochs",
        best_step=20,
        seconds=1.0,
        resumed_from=0,
        losses=((0, None, 0.02), (10, 0.2, worst), (20, 0.1, end)),
    )
    found = _warnings(trained, 8e-4)
    assert bool(found) == warned
    assert not warned or "rose from 0.0200 to 0.0460 before it fell to 0.0180" in found[0]


def test_loss_that_is_no_number_stops_the_step(
    base: Artifact, make_student: Callable[..., Artifact], make_out: Callable[[str], Path], make_context: Callable[..., StepContext]
) -> None:
    out = make_out("out")
    context = make_context(values=inputs(base, draw_texts(100)))
    with pytest.raises(StepError, match=r"the loss became nan at step 1; lower learning_rate \(0\.001\)"):
        STEP.run(make_student(base, noise=float("nan")), out, context)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("texts", "judged", "said"),
    [
        ([], JudgedTexts(), "0 texts to distill on, expected at least 16"),
        ([*draw_texts(50), "Oak  lamp"], JudgedTexts(queries={"oak lamp": "retail"}), "'Oak  lamp' is in the test of retail"),
        ([f"รองเท้า {number}" for number in range(30)], JudgedTexts(), "not in the model's vocabulary"),
    ],
)
def test_texts_that_would_mean_nothing_are_refused(
    base: Artifact,
    student: Artifact,
    make_context: Callable[..., StepContext],
    tmp_path: Path,
    texts: list[str],
    judged: JudgedTexts,
    said: str,
) -> None:
    with pytest.raises(StepError, match=said):
        STEP.run(student, tmp_path, make_context(values=inputs(base, texts, judged=judged)))


def test_base_is_needed(student: Artifact, make_context: Callable[..., StepContext], tmp_path: Path) -> None:
    with pytest.raises(StepError, match="needs BaseCheckpoint"):
        STEP.run(student, tmp_path, make_context(values={CalibrationTexts: draw_texts(50), EvaluationTexts: JudgedTexts()}))


def test_missing_extra_is_named(
    base: Artifact, student: Artifact, make_context: Callable[..., StepContext], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optbench.machine.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"training needs .*sentence_transformers.*pip install 'optbench\[train\]'"):
        STEP.run(student, tmp_path, make_context(values=inputs(base, draw_texts(50))))


def test_bf16_is_refused_on_a_cpu_that_would_emulate_it() -> None:
    machine = read_machine().model_copy(update={"flags": ()})
    assert not use_bf16("auto", machine)
    with pytest.raises(StepError, match="this CPU has no bf16 products"):
        use_bf16("bf16", machine)


def test_onednn_keeps_more_products_unless_its_variable_says_how_many(student: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PRIMITIVE_CACHE, "7")
    build_trainable(student.path)
    assert os.environ[PRIMITIVE_CACHE] == "7"
    monkeypatch.delenv(PRIMITIVE_CACHE)
    build_trainable(student.path)
    assert os.environ[PRIMITIVE_CACHE] == PRIMITIVES_KEPT


@pytest.mark.parametrize(("hidden", "rate"), [(32, 8e-4), (384, 8e-4), (768, 2e-4), (1024, 1.125e-4)])
def test_wider_body_has_a_lower_learning_rate(hidden: int, rate: float) -> None:
    assert default_learning_rate(hidden) == pytest.approx(rate, rel=0.01)


@pytest.mark.parametrize(("tokens", "texts"), [(4, 64), (32, 64), (128.5, 15), (512, 4), (8192, 1)])
def test_batch_has_fewer_texts_where_they_are_long(tokens: float, texts: int) -> None:
    assert default_batch(tokens) == texts


def test_rate_and_batch_that_are_left_out_are_on_record(
    run: Run, make_out: Callable[[str], Path], make_context: Callable[..., StepContext]
) -> None:
    step = STEP.model_copy(update={"learning_rate": None, "batch": None, "epochs": 1})
    report = step.run(
        run.student,
        make_out("out"),
        make_context(values=inputs(run.base, draw_texts(50))),
    )
    assert (report.facts["learning_rate"], report.facts["batch"]) == (8e-4, 64)
    assert (run.report.facts["learning_rate"], run.report.facts["batch"]) == (1e-3, 8)


@pytest.mark.parametrize(("student", "teacher", "mapped"), [(6, 6, (0, 1, 2, 3, 4, 5)), (4, 12, (2, 5, 8, 11)), (5, 6, (0, 1, 2, 3, 5))])
def test_layers_answer_to_evenly_spread_ones_of_the_base(student: int, teacher: int, mapped: tuple[int, ...]) -> None:
    assert map_layers(student, teacher, None) == mapped


@pytest.mark.parametrize("wanted", [(0,), (1, 0), (0, 3)])
def test_layer_map_that_does_not_fit_is_refused(wanted: tuple[int, ...]) -> None:
    with pytest.raises(StepError, match="expected 2 ascending layers from 0 to 2"):
        map_layers(2, 3, wanted)
