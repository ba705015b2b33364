"""prune_structured: within its budget, nearer to the whole model than a plain cut, and an ordinary checkpoint afterwards."""

import dataclasses
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from optbench.artifact.folder import Artifact, hash_file, open_artifact, seal
from optbench.artifact.manifest import Kind
from optbench.errors import StepError
from optbench.machine.cpu import read_machine
from optbench.model.checkpoint import read_body
from optbench.model.tokenizer import encode_batch, load_tokenizer
from optbench.model.torch_model import build_module, encoder_layers, load_torch_model, resize_layer, save_torch_model
from optbench.steps.base import CalibrationTexts, EvaluationTexts, LayerLatencies, RecipeFiles, StepContext, StepReport
from optbench.steps.prune_structured import PruneStructured
from optbench.steps.pruning.latency import LayerTimes
from optbench.tasks import JudgedTexts
from optbench.tasks.base import normalize_text

ADJECTIVES = ["red", "blue", "waterproof", "oak", "small", "large", "wireless"]
THINGS = ["shoe", "boot", "laptop", "charger", "cable", "desk", "lamp", "chair", "mouse"]
TEXTS = [f"{a} {b}" for a in ADJECTIVES for b in THINGS] + [
    f"{a} {b} {c}" for a, b in zip(ADJECTIVES, THINGS, strict=False) for c in THINGS
]
TIMES = LayerTimes(
    fixed={8: 0.2, 64: 0.5},
    attention={0: {8: 0.1, 64: 0.1}, 4: {8: 0.5, 64: 2.1}},
    feed_forward={0: {8: 0.1, 64: 0.2}, 64: {8: 1.0, 64: 4.0}},
)


def prune(source: Artifact, out: Path, **options: Any) -> StepReport:
    out.mkdir()
    times = options.pop("layer_times", None)
    texts = options.pop("texts", TEXTS)
    step = PruneStructured.model_validate({"round_to": 8, "rounds": 2, **options})
    return step.run(source, out, StepContext(scratch=out, machine=read_machine(), values={CalibrationTexts: texts, LayerLatencies: times}))


def embed(folder: Path, texts: list[str]) -> torch.Tensor:
    ids, mask = encode_batch(load_tokenizer(folder), texts)
    with torch.no_grad():
        vectors: torch.Tensor = build_module(folder)(torch.from_numpy(ids), torch.from_numpy(mask))[1]
    return torch.nn.functional.normalize(vectors, dim=1)


@pytest.fixture(scope="module")
def source(make_checkpoint: Callable[..., Artifact]) -> Artifact:
    return make_checkpoint("BertModel", "mean", layers=3)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory, source: Artifact) -> tuple[Path, StepReport]:
    out = tmp_path_factory.mktemp("prune") / "out"
    return out, prune(source, out, keep_flops=0.6, drop_layers=False)


def test_budget_is_met_and_sizes_are_multiples(pruned: tuple[Path, StepReport], source: Artifact) -> None:
    out, report = pruned
    body, whole = read_body(out), read_body(source.path)
    assert 0.5 < body.weights / whole.weights <= 0.601
    assert report.facts["kept_flops"] == body.weights / whole.weights
    assert report.facts["heads"] == list(body.heads_by_layer)
    assert all(width % 8 == 0 for width in body.feed_forward_by_layer)
    assert open_artifact(source.path).sha256 == source.sha256


def test_pruned_model_is_nearer_to_the_whole_one_than_a_plain_cut(
    tmp_path: Path, pruned: tuple[Path, StepReport], source: Artifact
) -> None:
    out, _ = pruned
    model = load_torch_model(source.path)
    for layer, (heads, width) in zip(encoder_layers(model), read_body(out).sizes, strict=True):
        resize_layer(layer, range(heads), range(width))
    save_torch_model(model, source.path, tmp_path)
    texts = ["large oak chair", "mouse cable red lamp", "wireless blue desk charger"]
    assert not set(texts) & set(TEXTS)
    wanted = embed(source.path, texts)
    cosine, plain = ((embed(folder, texts) * wanted).sum(1).mean() for folder in (out, tmp_path))
    assert cosine > 0.9
    assert 1 - cosine < 0.5 * (1 - plain)


def test_same_seed_gives_the_same_bytes(tmp_path: Path, pruned: tuple[Path, StepReport], source: Artifact) -> None:
    prune(source, tmp_path / "again", keep_flops=0.6, drop_layers=False)
    assert hash_file(tmp_path / "again" / "model.safetensors") == hash_file(pruned[0] / "model.safetensors")


def test_named_texts_are_calibrated_on_unless_a_task_judges_them(tmp_path: Path, source: Artifact) -> None:
    (tmp_path / "more.txt").write_text("\n".join(TEXTS[10:]), encoding="utf-8")
    (tmp_path / "out").mkdir()
    context = StepContext(scratch=tmp_path, machine=read_machine(), values={CalibrationTexts: TEXTS[:20], RecipeFiles: tmp_path})
    step = PruneStructured(keep_flops=0.6, round_to=8, texts=(Path("more.txt"),))
    report = step.run(source, tmp_path / "out", context)
    assert report.facts["calibration_texts"] == len(set(TEXTS))

    (tmp_path / "again").mkdir()
    judged = dataclasses.replace(
        context, values={**context.values, EvaluationTexts: JudgedTexts(queries={normalize_text(TEXTS[-1].upper()): "shop"})}
    )
    with pytest.raises(StepError, match="is in the test of shop"):
        step.run(source, tmp_path / "again", judged)
    assert list((tmp_path / "again").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ({"keep_flops": 0.6}, [CalibrationTexts]),
        ({"latency_ratio": 0.6}, [CalibrationTexts, LayerLatencies]),
        ({"keep_flops": 0.6, "texts": ["more.txt"]}, [CalibrationTexts, RecipeFiles, EvaluationTexts]),
    ],
)
def test_inputs_follow_the_budget_and_the_named_texts(options: dict[str, Any], kinds: list[type]) -> None:
    assert [type(each) for each in PruneStructured.model_validate(options).inputs()] == kinds


def test_less_that_lasts_takes_more_from_the_first_layers(tmp_path: Path, source: Artifact) -> None:
    for lasting in (1.0, 0.05):
        prune(source, tmp_path / str(lasting), keep_flops=0.6, drop_layers=False, rounds=1, lasting=lasting)
    even, uneven = (read_body(tmp_path / str(lasting)).sizes for lasting in (1.0, 0.05))
    assert sum(uneven[0]) < sum(even[0])
    assert sum(uneven[-1]) > sum(even[-1])


def test_refit_damping_holds_the_weights_from_the_calibration_texts(tmp_path: Path, source: Artifact) -> None:
    def fit(damping: float) -> tuple[object, torch.Tensor]:
        out = tmp_path / str(damping)
        prune(source, out, keep_flops=0.6, drop_layers=False, rounds=1, refit_damping=damping)
        return read_body(out).sizes, (embed(out, TEXTS) * embed(source.path, TEXTS)).sum(1).mean()

    (held_sizes, held), (free_sizes, free) = fit(10.0), fit(0.001)
    assert held_sizes == free_sizes
    assert held < free


def test_layer_that_does_nothing_is_dropped(tmp_path: Path, source: Artifact) -> None:
    folder = tmp_path / "idle"
    model = load_torch_model(source.path)
    layer = encoder_layers(model)[1]
    with torch.no_grad():
        # Nothing is added to a stream that is normalized already: the layer gives back what it reads.
        for linear in (layer.projection, layer.down):
            linear.weight.zero_()
            linear.bias.zero_()
    folder.mkdir()
    save_torch_model(model, source.path, folder)
    report = prune(seal(folder, tmp_path / "sealed", Kind.CHECKPOINT, "random"), tmp_path / "out", keep_flops=0.66, rounds=1)
    assert report.facts["dropped_layers"] == [1]
    assert read_body(tmp_path / "out").layers == 2
    wanted = embed(tmp_path / "sealed", TEXTS[:5])
    assert ((embed(tmp_path / "out", TEXTS[:5]) * wanted).sum(1) > 0.999).all()


def test_latency_target_is_met_by_the_times_that_were_measured(tmp_path: Path, source: Artifact) -> None:
    report = prune(source, tmp_path / "out", latency_ratio=0.7, layer_times=TIMES)
    sizes, whole = read_body(tmp_path / "out").sizes, read_body(source.path).sizes
    ratios = [TIMES.body_ms(sizes, n) / TIMES.body_ms(whole, n) for n in (8, 64)]
    assert 0.6 < sum(ratios) / 2 <= 0.701
    assert report.facts["predicted_ratio"] == {"8": ratios[0], "64": ratios[1]}
    prune(source, tmp_path / "ms", latency_ms=4.0, at_tokens=8, layer_times=TIMES)
    assert 3.0 < TIMES.body_ms(read_body(tmp_path / "ms").sizes, 8) <= 4.005


def test_cls_pooling_and_one_round_work_too(tmp_path: Path, make_checkpoint: Callable[..., Artifact]) -> None:
    source = make_checkpoint("XLMRobertaModel", "cls")
    prune(source, tmp_path / "out", keep_flops=0.7, rounds=1)
    wanted = embed(source.path, TEXTS[:20])
    assert (embed(tmp_path / "out", TEXTS[:20]) * wanted).sum(1).mean() > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"keep_flops": 0.6, "texts": []},
            "0 distinct texts to calibrate on, expected at least 32; raise the recipe's calibration.texts",
        ),
        ({"keep_flops": 0.6, "texts": ["red shoe"] * 40}, "1 distinct texts to calibrate on"),
        ({"keep_flops": 0.01}, "is out of reach: the smallest body costs"),
        ({"latency_ratio": 0.5}, "needs measured layer latencies; run it with optbench apply"),
        ({"latency_ms": 1.0, "at_tokens": 16, "layer_times": TIMES}, "at_tokens 16 is not among the workload's lengths [8, 64]"),
        ({"latency_ms": 99.0, "at_tokens": 64, "layer_times": TIMES}, "the whole body takes only 18.8 ms; set a lower budget"),
        ({"latency_ratio": 0.1, "layer_times": TIMES}, "is out of reach"),
    ],
)
def test_what_cannot_be_done_is_an_error_with_its_cure(tmp_path: Path, source: Artifact, options: dict[str, Any], message: str) -> None:
    with pytest.raises(StepError) as caught:
        prune(source, tmp_path / "out", drop_layers=False, **options)
    assert message in str(caught.value)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_weights_that_are_not_finite_are_an_error(tmp_path: Path, source: Artifact) -> None:
    folder = tmp_path / "broken"
    model = load_torch_model(source.path)
    folder.mkdir()
    save_torch_model(model, source.path, folder)
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.1.output.dense.weight"][0, 0] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(StepError, match="not finite"):
        prune(seal(folder, tmp_path / "sealed", Kind.CHECKPOINT, "random"), tmp_path / "out", keep_flops=0.6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "set one of keep_flops, latency_ratio and latency_ms; found none"),
        ({"keep_flops": 0.5, "latency_ratio": 0.5}, "found keep_flops and latency_ratio"),
        ({"latency_ms": 5.0}, "at_tokens is the length at which latency_ms applies"),
        ({"keep_flops": 0.5, "at_tokens": 8}, "at_tokens is the length at which latency_ms applies"),
    ],
)
def test_budget_is_said_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PruneStructured(**options)


def test_activations_of_one_batch_in_one_layer_are_held_at_a_time(
    tmp_path: Path, source: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory must not grow with layers times texts: of the widest activations, those of the last batch and the next are alive."""
    from optbench.steps.pruning import method, states

    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def watched(function: Callable[..., Any], tensor_of: Callable[[Any], torch.Tensor]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            result = function(*arguments)
            made.append(weakref.ref(tensor_of(result)))
            alive.append(sum(each() is not None for each in made))
            return result

        return call

    monkeypatch.setattr(states, "BATCH_TOKENS", 64)
    monkeypatch.setattr(method, "layer_states", watched(states.layer_states, lambda found: found.active))
    report = prune(source, tmp_path / "out", keep_flops=0.7, drop_layers=False, rounds=1)
    batches = report.facts["calibration_tokens"] // 64  # type: ignore[operator]
    assert batches >= 5
    assert len(made) >= read_body(source.path).layers * batches
    assert max(alive) <= 2
