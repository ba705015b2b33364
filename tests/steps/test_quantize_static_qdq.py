"""Static int8 in QDQ form: what is rewritten, the ranges, smoothing, and parity with ONNX Runtime's own quantizer."""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from optbench.artifact.folder import Artifact, open_artifact
from optbench.artifact.manifest import Kind
from optbench.errors import StepError
from optbench.model.tokenizer import encode_batch, load_tokenizer
from optbench.steps.base import CalibrationTexts, StepContext, StepReport
from optbench.steps.calibration.samples import calibration_inputs
from optbench.steps.onnx.ranges import activation_scale
from optbench.steps.quantize_static_qdq import QuantizeStaticQdq
from optbench.tasks.hostile import hostile_texts
from tests.conftest import WORDS

MakeContext = Callable[..., StepContext]
MakeArtifact = Callable[..., Artifact]
# Hostile texts to calibrate on where their number does not matter.
FEW = 4


def quantize(source: Artifact, out: Path, context: StepContext, **options: Any) -> tuple[Path, StepReport]:
    out.mkdir()
    report = QuantizeStaticQdq(**{"hostile_samples": FEW, **options}).run(source, out, context)
    open_artifact(source.path)  # raises where a byte of the source has changed
    return out / Kind.ONNX.main_file, report


def run(path: Path, folder: Path, texts: list[str], output: str, *, optimize: bool = False) -> list[NDArray[np.float32]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    tokenizer = load_tokenizer(folder)
    batches = [encode_batch(tokenizer, [text]) for text in texts]
    return [session.run([output], {"input_ids": ids, "attention_mask": mask})[0] for ids, mask in batches]


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def constants(path: Path) -> dict[str, NDArray[Any]]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


@pytest.mark.parametrize(("alpha", "multiplications"), [(None, 0), (0.5, 8)])
def test_products_of_one_activation_share_its_quantizer(
    make_artifact: MakeArtifact,
    make_context: MakeContext,
    tmp_path: Path,
    tiny_texts: list[str],
    alpha: float | None,
    multiplications: int,
) -> None:
    source = make_artifact(Kind.ONNX)
    context = make_context(values={CalibrationTexts: tiny_texts})
    path, report = quantize(source, tmp_path / "out", context, smooth_quant_alpha=alpha)
    before, after = operators(source.main_file), operators(path)
    # Two layers: query, key and value read one activation, the other three products one each.
    assert after["QuantizeLinear"] == 8
    assert after["DequantizeLinear"] == 8 + 12
    assert after["MatMul"] == before["MatMul"] == 12 + 4
    assert after["Mul"] - before["Mul"] == multiplications
    assert report.matched == {"MatMul": 12}
    assert [refusal.reason for refusal in report.refused] == ["multiplies two activations"] * 4
    assert report.facts["calibration_texts"] == len(tiny_texts) + FEW


def test_parameters_are_those_of_onnxruntimes_own_quantizer(
    make_artifact: MakeArtifact, make_context: MakeContext, tmp_path: Path, tiny_texts: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    source = make_artifact(Kind.ONNX, "XLMRobertaModel", "mean")
    context = make_context(values={CalibrationTexts: tiny_texts})
    path, _ = quantize(source, tmp_path / "out", context, smooth_quant_alpha=None, reduce_range=False, hostile_samples=0)

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is not type-checked
        def __init__(self) -> None:
            self.entries: Iterator[Any] = iter(calibration_inputs(source.path, tiny_texts, 64, 0, "test"))

        def get_next(self) -> Any:
            return next(self.entries, None)

    by_hand = tmp_path / "by_hand.onnx"
    logging.disable(logging.WARNING)
    try:
        quantize_static(
            source.main_file,
            by_hand,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
    finally:
        logging.disable(logging.NOTSET)
    capfd.readouterr()
    ours, theirs = constants(path), constants(by_hand)
    weights = [name for name in ours if name.endswith(".weight_quantized")]
    assert len(weights) == 12
    for name in weights:
        np.testing.assert_array_equal(ours[name], theirs[name])
        np.testing.assert_array_equal(ours[name.replace("_quantized", "_scale")], theirs[name.replace("_quantized", "_scale")])
    scales = [name for name in ours if name.endswith("_output_0_scale")]
    assert len(scales) == 8
    for name in scales:
        # Both see the same float activations but through graphs with other outputs: float32 sums may differ in the last bits.
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5)
        assert abs(int(ours[name.replace("_scale", "_zero_point")]) - int(theirs[name.replace("_scale", "_zero_point")])) <= 1


def test_smoothing_alone_changes_nothing_but_the_scales(
    make_artifact: MakeArtifact, make_context: MakeContext, tmp_path: Path, tiny_texts: list[str]
) -> None:
    source = make_artifact(Kind.ONNX)
    path, _ = quantize(source, tmp_path / "out", make_context(values={CalibrationTexts: tiny_texts}), smooth_quant_alpha=0.75)
    stored = constants(path)
    original = constants(source.main_file)
    name = "encoder.layer.0.intermediate.dense.weight"
    inverse = next(array for key, array in stored.items() if key.endswith("_smooth") and "layer.0/attention/output/LayerNorm" in key)
    restored = stored[f"{name}_quantized"] * stored[f"{name}_scale"] * inverse[:, None]
    # Half a step of the smoothed weight, brought back to the weight's own units.
    bound = 0.5 * stored[f"{name}_scale"] * inverse[:, None] * 1.001
    assert np.all(np.abs(restored - original[name]) <= bound)
    assert inverse.max() / inverse.min() > 1.5  # it does smooth


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_each_way_to_choose_ranges_stays_close_to_float(
    make_artifact: MakeArtifact,
    make_context: MakeContext,
    tmp_path: Path,
    tiny_texts: list[str],
    capfd: pytest.CaptureFixture[str],
    method: str,
    symmetric: bool,
) -> None:
    source = make_artifact(Kind.ONNX)
    context = make_context(values={CalibrationTexts: tiny_texts})
    path, _ = quantize(source, tmp_path / "out", context, method=method, symmetric_activations=symmetric)
    assert capfd.readouterr() == ("", "")
    found = np.concatenate(run(path, source.path, tiny_texts, "sentence_embedding"))
    wanted = np.concatenate(run(source.main_file, source.path, tiny_texts, "sentence_embedding"))
    # 8 products in a row with steps of 1/255 of a range that is some 6 standard deviations wide: an error of about 2 % of
    # the norm, so a cosine of .9998; clipping ranges costs more, and a broken graph gives about 0.
    assert (found * wanted).sum(axis=1).min() > (0.995 if method == "minmax" else 0.95)


def test_real_model_is_close_to_float_and_fused_whole(
    minilm: Callable[[Kind], Artifact], make_context: MakeContext, tmp_path: Path, shop_texts: list[str]
) -> None:
    source = minilm(Kind.ONNX)
    path, report = quantize(source, tmp_path / "out", make_context(values={CalibrationTexts: shop_texts}), tables="int8")
    assert report.matched == {"MatMul": 36, "Gather": 2}
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3  # it warns that the file suits this machine only
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    assert operators(tmp_path / "optimized.onnx")["MatMulIntegerToFloat"] == 36
    unseen = ["garden hose 20 m", "winter tyres", "silver necklace with pendant", "hdmi cable"]
    found = np.concatenate(run(path, source.path, unseen, "sentence_embedding", optimize=True))
    wanted = np.concatenate(run(source.main_file, source.path, unseen, "sentence_embedding", optimize=True))
    # On 99 shop queries it is .998 on average and .992 at least.
    assert (found * wanted).sum(axis=1).min() > 0.98


def test_two_runs_write_the_same_bytes_and_another_seed_others(
    make_artifact: MakeArtifact, make_context: MakeContext, tmp_path: Path, tiny_texts: list[str]
) -> None:
    context = make_context(values={CalibrationTexts: tiny_texts})
    paths = [quantize(make_artifact(Kind.ONNX), tmp_path / str(index), context, samples=3, seed=index // 2)[0] for index in range(3)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].read_bytes() != paths[2].read_bytes()


def test_excluded_products_stay_in_float(
    make_artifact: MakeArtifact, make_context: MakeContext, tmp_path: Path, tiny_texts: list[str]
) -> None:
    context = make_context(values={CalibrationTexts: tiny_texts})
    path, report = quantize(make_artifact(Kind.ONNX), tmp_path / "out", context, exclude=["encoder.layer.*.output.dense.weight"])
    # attention.output.dense and output.dense of two layers
    assert report.matched == {"MatMul": 8}
    assert operators(path)["QuantizeLinear"] == 4


def test_scale_of_one_sided_and_empty_ranges() -> None:
    assert activation_scale(0.5, 2.55, symmetric=False) == activation_scale(0.0, 2.55, symmetric=False)
    assert int(activation_scale(-2.55, 0.0, symmetric=False).zero_point) == 255
    assert int(activation_scale(0.0, 2.55, symmetric=False).zero_point) == 0
    assert int(activation_scale(-1.0, 2.0, symmetric=True).zero_point) == 128
    empty = activation_scale(0.0, 0.0, symmetric=False)
    assert (float(empty.scale), int(empty.zero_point)) == (1.0, 0)


def test_recipe_without_calibration_texts_is_an_error(make_artifact: MakeArtifact, make_context: MakeContext, tmp_path: Path) -> None:
    source = make_artifact(Kind.ONNX)
    with pytest.raises(StepError) as caught:
        quantize(source, tmp_path / "out", make_context(values={CalibrationTexts: ["", "  "]}))
    assert str(caught.value) == (
        f"{source.main_file} quantize_static_qdq: no calibration texts; name an accuracy task in the recipe, or --task"
    )


def test_calibration_inputs_are_drawn_once_and_never_padded(make_artifact: MakeArtifact, tiny_texts: list[str]) -> None:
    inputs = calibration_inputs(make_artifact(Kind.ONNX).path, [*tiny_texts, *tiny_texts], 5, 0, "test")
    lengths = [entry["input_ids"].shape[1] for entry in inputs]
    assert len(inputs) == 5
    assert len({entry["input_ids"].tobytes() for entry in inputs}) == 5
    assert lengths == sorted(lengths)
    assert all(entry["attention_mask"].all() for entry in inputs)


def test_hostile_texts_are_added_with_each_prompt_in_turn(make_artifact: MakeArtifact, tiny_texts: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "prompted"
    shutil.copytree(make_artifact(Kind.ONNX).path, folder)
    prompts = {"query": f"{WORDS[0]} ", "document": f"{WORDS[1]} {WORDS[1]} "}
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}), encoding="utf-8")
    plain = calibration_inputs(folder, tiny_texts, 5, 0, "test")
    inputs = calibration_inputs(folder, tiny_texts, 5, 0, "test", hostile=4)
    tokenizer = load_tokenizer(folder)
    made = hostile_texts(4, "calibration", 0)
    expected = [
        encode_batch(tokenizer, [prompts["document" if index % 2 else "query"] + text])[0].tobytes() for index, text in enumerate(made)
    ]
    found = [entry["input_ids"].tobytes() for entry in inputs]
    assert sorted(found) == sorted([*expected, *(entry["input_ids"].tobytes() for entry in plain)])


def test_activation_that_is_not_finite_is_named(
    make_artifact: MakeArtifact, make_context: MakeContext, tmp_path: Path, tiny_texts: list[str]
) -> None:
    from optbench.artifact.folder import copy_companions, seal

    source = make_artifact(Kind.ONNX)
    model = onnx.load(source.main_file)
    for tensor in model.graph.initializer:
        if tensor.name == "encoder.layer.1.attention.self.value.bias":
            broken = onnx.numpy_helper.to_array(tensor).copy()
            broken[0] = np.inf
            tensor.CopyFrom(onnx.numpy_helper.from_array(broken, tensor.name))
    staging = tmp_path / "broken"
    (staging / "onnx").mkdir(parents=True)
    copy_companions(source.path, staging)
    onnx.save(model, staging / Kind.ONNX.main_file)
    sealed = seal(staging, tmp_path / "sealed", Kind.ONNX, "random")
    with pytest.raises(StepError, match=r"encoder/layer\.1/.* holds a NaN or an infinity on a calibration text"):
        quantize(sealed, tmp_path / "out", make_context(values={CalibrationTexts: tiny_texts}))
