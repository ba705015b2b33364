"""Static int8 on OpenVINO: what NNCF is asked to do, what it did, and that smoothing alone changes no number."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from numpy.typing import NDArray

from optbench.artifact.folder import Artifact, copy_companions, open_artifact, seal
from optbench.artifact.manifest import Kind
from optbench.engines.onednn import MAX_ISA
from optbench.errors import MachineError, StepError
from optbench.machine.cpu import read_machine
from optbench.model.tokenizer import encode_batch, load_tokenizer
from optbench.steps.base import HOSTILE_SAMPLES, CalibrationTexts, StepContext, StepReport
from optbench.steps.calibration.samples import calibration_inputs
from optbench.steps.calibration.smoothing import observe_maxima, smooth, smoothing_scale
from optbench.steps.convert_openvino import ConvertOpenvino
from optbench.steps.openvino.graph import find_weight_matmuls, group_by_activation, read_graph, transpose_weights
from optbench.steps.quantize_static import QuantizeStatic
from optbench.tasks.hostile import hostile_texts

MakeContext = Callable[..., StepContext]
MakeArtifact = Callable[..., Artifact]
# Hostile texts to calibrate on where their number does not matter.
FEW = 4
# The engine's own rounding is off: f32 throughout, and no dynamic quantization of what a step compressed.
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "INFERENCE_NUM_THREADS": 1}


def quantize(source: Artifact, out: Path, context: StepContext, **options: Any) -> tuple[Path, StepReport]:
    out.mkdir()
    report = QuantizeStatic(**{"hostile_samples": FEW, **options}).run(source, out, context)
    open_artifact(source.path)  # raises where a byte of the source has changed
    return out / Kind.OPENVINO.main_file, report


def embed(model: Path | ov.Model, folder: Path, texts: list[str]) -> NDArray[np.float32]:
    compiled = ov.Core().compile_model(model, "CPU", EXACT)
    tokenizer = load_tokenizer(folder)
    rows = []
    for text in texts:
        ids, mask = encode_batch(tokenizer, [text])
        rows.append(compiled({"input_ids": ids, "attention_mask": mask})["sentence_embedding"].copy())
    return np.concatenate(rows)


def operators(path: Path) -> Counter[str]:
    return Counter(node.get_type_name() for node in ov.Core().read_model(path).get_ordered_ops())


def stored_types(path: Path) -> list[str]:
    """The types of the constants of two axes and some size: tables and weights."""
    nodes = ov.Core().read_model(path).get_ordered_ops()
    constants = [node for node in nodes if node.get_type_name() == "Constant"]
    return [node.get_element_type().get_type_name() for node in constants if min([*node.get_output_shape(0), 0][:2]) > 4]


def test_every_weight_and_both_factors_of_the_scores_are_quantized(
    make_artifact: MakeArtifact, make_context: MakeContext, tmp_path: Path, tiny_texts: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    source = make_artifact(Kind.OPENVINO)
    context = make_context(values={CalibrationTexts: tiny_texts})
    capfd.readouterr()  # what making the source printed
    path, report = quantize(source, tmp_path / "out", context)
    assert capfd.readouterr() == ("", "")
    # Two layers of: query/key/value, attention output, two of the feed-forward, and query and key for the scores.
    assert operators(path)["FakeQuantize"] == 2 * 6
    assert report.matched == {"MatMul": 12, "MatMul of two activations": 2}
    assert report.refused == ()
    assert report.facts["smoothed"] == 2 * 4
    assert report.facts["calibration_texts"] == len(tiny_texts) + FEW
    assert report.facts["hostile_texts"] == FEW
    assert stored_types(path).count("i8") == 12
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    found, wanted = (embed(model, source.path, tiny_texts) for model in (path, source.main_file))
    # Eight products in a row, each with steps of 1/255 of a range some 6 standard deviations wide: about 2 % of the norm,
    # so a cosine of .9998, .9992 with the 7-bit weights of a CPU without VNNI; a broken graph gives about 0.
    assert (found * wanted).sum(axis=1).min() > 0.998


@pytest.mark.parametrize(("flags", "expected"), [((), True), (("avx512_vnni",), False)])
def test_range_is_reduced_only_where_the_cpu_would_saturate(
    make_artifact: MakeArtifact, make_context: MakeContext, tmp_path: Path, tiny_texts: list[str], flags: tuple[str, ...], expected: bool
) -> None:
    context = make_context(values={CalibrationTexts: tiny_texts})
    context = replace(context, machine=context.machine.model_copy(update={"flags": flags}))
    path, report = quantize(make_artifact(Kind.OPENVINO), tmp_path / "out", context)
    assert report.facts["reduce_range"] is expected
    nodes = [node for node in ov.Core().read_model(path).get_ordered_ops() if node.get_type_name() == "Constant"]
    largest = max(int(np.abs(node.data.astype(int)).max()) for node in nodes if node.get_element_type() == ov.Type.i8)
    assert largest <= 64 if expected else largest > 120


@pytest.mark.parametrize("transposed", [False, True])
def test_smoothing_alone_leaves_the_embeddings_as_they_are(make_artifact: MakeArtifact, tiny_texts: list[str], transposed: bool) -> None:
    source = make_artifact(Kind.OPENVINO, "XLMRobertaModel", "cls")
    wanted = embed(source.main_file, source.path, tiny_texts)
    model = read_graph(source)
    if transposed:
        assert transpose_weights(find_weight_matmuls(model)[0]) == 12
    groups = group_by_activation(find_weight_matmuls(model)[0])
    assert [len(group) for group in groups] == [3, 1, 1, 1] * 2
    done: list[int] = []
    inputs = calibration_inputs(source.path, tiny_texts, 4, 0, "test")
    maxima = observe_maxima(model, groups, inputs, 1, done.append)
    assert done == [1, 2, 3, 4]
    before = find_weight_matmuls(model)[0][0].constant.data.copy()
    smooth(groups, maxima, 0.75)
    after = find_weight_matmuls(model)[0][0].constant.data
    assert np.abs(after / before - 1).max() > 0.1  # it does smooth
    # Two float32 roundings more for each product.
    np.testing.assert_allclose(embed(model, source.path, tiny_texts), wanted, atol=2e-6)


def test_maxima_are_those_of_the_activations(make_artifact: MakeArtifact, tiny_texts: list[str]) -> None:
    source = make_artifact(Kind.OPENVINO)
    model = read_graph(source)
    group = group_by_activation(find_weight_matmuls(model)[0])[0]
    inputs = calibration_inputs(source.path, tiny_texts, 3, 0, "test")
    maximum = observe_maxima(model, [group], inputs, 1, lambda done: None)[0]
    probe = ov.Model([ov.opset13.result(group[0].node.input_value(0))], model.get_parameters(), "probe")
    compiled = ov.Core().compile_model(probe, "CPU", EXACT)
    seen = np.concatenate([compiled(entry)[0].reshape(-1, group[0].inputs) for entry in inputs])
    np.testing.assert_array_equal(maximum, np.abs(seen).max(axis=0))


def test_smoothing_scale_follows_its_formula_within_its_bounds() -> None:
    activations = np.array([4, 1, 0, 1e9] + [1] * 16, dtype=np.float32)
    weights = np.array([1, 4, 1, 1] + [1] * 16, dtype=np.float32)
    scale = smoothing_scale(activations, weights, 0.5)
    assert scale[0] == pytest.approx(2)
    assert scale[3] == 100
    # The quietest tenth of 20 channels share the scale of the channel at the quantile.
    assert scale[1] == scale[2] == scale.min() == pytest.approx(np.quantile(np.sqrt([4, 0.25, 1e-5, 1e9] + [1] * 16), 0.1))


def test_real_model_is_closer_to_float_than_nncf_by_itself(
    minilm: Callable[[Kind], Artifact], make_context: MakeContext, tmp_path: Path, shop_texts: list[str]
) -> None:
    from optbench.steps.openvino.graph import quiet_nncf

    source = minilm(Kind.OPENVINO)
    context = make_context(values={CalibrationTexts: shop_texts})
    path, report = quantize(source, tmp_path / "out", context, hostile_samples=HOSTILE_SAMPLES)
    assert report.matched == {"MatMul": 36, "MatMul of two activations": 6}
    with quiet_nncf() as (nncf, _):
        inputs = calibration_inputs(source.path, shop_texts, 64, 0, "test")
        by_hand = nncf.quantize(read_graph(source), nncf.Dataset(inputs), model_type=nncf.ModelType.TRANSFORMER, subset_size=64)
    unseen = ["garden hose 20 m", "winter tyres", "silver necklace with pendant", "hdmi cable", "kids bicycle 20 inch red", "sofa"]
    wanted = embed(source.main_file, source.path, unseen)
    ours = (embed(path, source.path, unseen) * wanted).sum(axis=1)
    theirs = (embed(by_hand, source.path, unseen) * wanted).sum(axis=1)
    # On 99 shop queries: .998 on average and .994 at least, against .995 and .976.
    assert ours.min() > 0.98
    assert ours.mean() > theirs.mean()
    hostile = list(hostile_texts(50, "test"))
    wanted = embed(source.main_file, source.path, hostile)
    # At worst of 300: .94, and .74 without hostile texts among those that calibrate.
    assert (embed(path, source.path, hostile) * wanted).sum(axis=1).min() > 0.9


def ranges(path: Path) -> NDArray[np.float32]:
    """The width of each activation's range."""
    rounded = [node for node in ov.Core().read_model(path).get_ordered_ops() if node.get_type_name() == "FakeQuantize"]
    # The output range: the input's may be in steps.
    bounds = [[node.input_value(port).get_node().data.item() for port in (3, 4)] for node in rounded]
    return np.diff(np.array(bounds, dtype=np.float32), axis=1)[:, 0]


def test_hostile_texts_widen_the_ranges(
    make_artifact: MakeArtifact, make_context: MakeContext, tmp_path: Path, tiny_texts: list[str]
) -> None:
    context, source = make_context(values={CalibrationTexts: tiny_texts[:4]}), make_artifact(Kind.OPENVINO)
    options = {"smooth_quant_alpha": None}
    narrow, wide = (
        ranges(quantize(source, tmp_path / str(count), context, hostile_samples=count, **options)[0]) for count in (0, HOSTILE_SAMPLES)
    )
    # Equal where a layer norm bounds the values.
    assert (wide >= narrow * (1 - 1e-6)).all()
    assert (wide > narrow * 1.01).any()


def test_two_runs_write_the_same_bytes_and_another_seed_others(
    make_artifact: MakeArtifact, make_context: MakeContext, tmp_path: Path, tiny_texts: list[str]
) -> None:
    context = make_context(values={CalibrationTexts: tiny_texts})
    paths = [quantize(make_artifact(Kind.OPENVINO), tmp_path / str(run), context, samples=3, seed=run // 2)[0] for run in range(3)]
    first, second, third = ((path.read_bytes(), path.with_suffix(".bin").read_bytes()) for path in paths)
    assert first == second
    assert first[1] != third[1]


@pytest.mark.parametrize(
    ("options", "smoothed"),
    [
        ({"smooth_quant_alpha": None}, 0),
        ({"preset": "performance"}, 8),
        ({"ranges": "mean_minmax"}, 8),
    ],
)
def test_each_option_quantizes_the_same_places(
    make_artifact: MakeArtifact,
    make_context: MakeContext,
    tmp_path: Path,
    tiny_texts: list[str],
    options: dict[str, Any],
    smoothed: int,
) -> None:
    source, context = make_artifact(Kind.OPENVINO), make_context(values={CalibrationTexts: tiny_texts})
    path, report = quantize(source, tmp_path / "out", context, **options)
    default, _ = quantize(source, tmp_path / "default", context)
    assert report.matched == {"MatMul": 12, "MatMul of two activations": 2}
    assert report.facts["smoothed"] == smoothed
    assert path.with_suffix(".bin").read_bytes() != default.with_suffix(".bin").read_bytes()


def test_excluded_matmuls_stay_in_float_and_are_listed(
    make_artifact: MakeArtifact, make_context: MakeContext, tmp_path: Path, tiny_texts: list[str]
) -> None:
    source = make_artifact(Kind.OPENVINO)
    path, report = quantize(
        source, tmp_path / "out", make_context(values={CalibrationTexts: tiny_texts}), exclude=["*layer.?*output?dense*"]
    )
    # attention output and feed-forward output of two layers
    assert report.matched["MatMul"] == 8
    assert [refusal.reason for refusal in report.refused] == ["named by exclude"] * 4
    assert report.facts["smoothed"] == 2 * 2
    assert stored_types(path).count("i8") == 8


def test_weights_stored_as_fp16_are_quantized_like_others(
    make_artifact: MakeArtifact, make_context: MakeContext, tmp_path: Path, tiny_texts: list[str]
) -> None:
    source = make_artifact(Kind.OPENVINO)
    (tmp_path / "half" / "openvino").mkdir(parents=True)
    ov.save_model(ov.Core().read_model(source.main_file), tmp_path / "half" / Kind.OPENVINO.main_file, compress_to_fp16=True)
    copy_companions(source.path, tmp_path / "half")
    half = seal(tmp_path / "half", tmp_path / "sealed", Kind.OPENVINO, "random")
    assert "f16" in stored_types(half.main_file)
    path, report = quantize(half, tmp_path / "out", make_context(values={CalibrationTexts: tiny_texts}))
    assert report.matched == {"MatMul": 12, "MatMul of two activations": 2}
    found, wanted = (embed(model, source.path, tiny_texts) for model in (path, source.main_file))
    assert (found * wanted).sum(axis=1).min() > 0.998  # as above; fp16 adds 1/2000


def test_quantizing_twice_is_an_error_that_lists_every_weight(
    make_artifact: MakeArtifact, make_context: MakeContext, tmp_path: Path, tiny_texts: list[str]
) -> None:
    source, context = make_artifact(Kind.OPENVINO), make_context(values={CalibrationTexts: tiny_texts})
    quantize(source, tmp_path / "once", context)
    once = seal(tmp_path / "once", tmp_path / "sealed", Kind.OPENVINO, "random")
    with pytest.raises(StepError) as caught:
        quantize(once, tmp_path / "twice", context)
    message = str(caught.value)
    assert message.startswith(f"{once.main_file} quantize_static: 0 weight MatMuls can be quantized, 12 are expected; left alone: ")
    assert message.count("it is compressed already") == 12
    assert message.endswith("exclude them by name, set expect, or correct the step before")


def test_more_expected_than_there_are_is_an_error(
    make_artifact: MakeArtifact, make_context: MakeContext, tmp_path: Path, tiny_texts: list[str]
) -> None:
    with pytest.raises(StepError, match=r"12 weight MatMuls can be quantized, 13 are expected; left alone: none, the graph holds no more;"):
        quantize(make_artifact(Kind.OPENVINO), tmp_path / "out", make_context(values={CalibrationTexts: tiny_texts}), expect=13)


def test_pattern_that_matches_nothing_names_the_closest(
    make_artifact: MakeArtifact, make_context: MakeContext, tmp_path: Path, tiny_texts: list[str]
) -> None:
    source = make_artifact(Kind.OPENVINO)
    with pytest.raises(StepError, match=re.escape(f"{source.main_file} quantize_static exclude: '*layer.7*' matches no operation")):
        quantize(source, tmp_path / "out", make_context(values={CalibrationTexts: tiny_texts}), exclude=["*layer.7*"])


def test_recipe_without_calibration_texts_is_an_error(make_artifact: MakeArtifact, make_context: MakeContext, tmp_path: Path) -> None:
    source = make_artifact(Kind.OPENVINO)
    with pytest.raises(StepError, match=re.escape(f"{source.main_file} quantize_static: no calibration texts")):
        quantize(source, tmp_path / "out", make_context(values={CalibrationTexts: []}))


@pytest.mark.parametrize(
    ("flags", "cap", "expected"),
    [
        (("avx2",), None, "no VNNI"),
        (("avx512bw", "avx512_vnni"), None, None),
        (("avx512_vnni", "amx_int8"), None, "off AMX"),
        # Whoever set the cap decides, and was not kept off anything.
        (("avx512_vnni", "amx_int8"), "AVX512_CORE_AMX", None),
    ],
)
def test_what_keeps_int8_from_a_cpus_best_is_a_warning(
    flags: tuple[str, ...], cap: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(MAX_ISA, raising=False)
    if cap is not None:
        monkeypatch.setenv(MAX_ISA, cap)
    warnings = QuantizeStatic().machine_warnings(read_machine().model_copy(update={"flags": flags}))
    assert len(warnings) == (expected is not None)
    assert all(str(expected) in warning for warning in warnings)


def test_lengths_that_the_conversion_named_are_kept(
    make_artifact: MakeArtifact, make_context: MakeContext, tmp_path: Path, tiny_texts: list[str]
) -> None:
    (tmp_path / "converted").mkdir()
    ConvertOpenvino(static_lengths=(8, 16)).run(make_artifact(Kind.ONNX), tmp_path / "converted", make_context())
    source = seal(tmp_path / "converted", tmp_path / "sealed", Kind.OPENVINO, "random")
    path, _ = quantize(source, tmp_path / "out", make_context(values={CalibrationTexts: tiny_texts}))
    assert ov.Core().read_model(path).get_rt_info(["optbench", "static_lengths"]).value == "8 16"


def test_bias_correction_moves_biases_and_nothing_else(
    minilm: Callable[[Kind], Artifact], make_context: MakeContext, tmp_path: Path, shop_texts: list[str]
) -> None:
    context = make_context(values={CalibrationTexts: shop_texts})
    # NNCF leaves a bias alone that it would move by more than twice its size. With 7-bit weights those are all of this model's.
    paths = [
        quantize(minilm(Kind.OPENVINO), tmp_path / str(corrected), context, samples=4, bias_correction=corrected, reduce_range=False)[0]
        for corrected in (False, True)
    ]
    plain, corrected = (
        [node.data for node in ov.Core().read_model(path).get_ordered_ops() if node.get_type_name() == "Constant"] for path in paths
    )
    changed = [before.shape for before, after in zip(plain, corrected, strict=True) if not np.array_equal(before, after)]
    assert changed
    assert set(changed) <= {(384,), (1536,)}


def test_scratch_folder_that_cannot_be_written_is_an_error(
    make_artifact: MakeArtifact, make_context: MakeContext, tmp_path: Path, tiny_texts: list[str]
) -> None:
    context = make_context(values={CalibrationTexts: tiny_texts})
    (context.scratch / "smoothed.xml").mkdir()  # stands for a full disk: OpenVINO raises the same error
    with pytest.raises(MachineError, match=r"smoothed\.xml: the smoothed model cannot be written; free some space and run again"):
        quantize(make_artifact(Kind.OPENVINO), tmp_path / "out", context)
