"""compress_weights: what is compressed and what is not, how far the numbers move, and that a broken quantizer is seen."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from optbench.artifact.folder import Artifact, hash_file, open_artifact, seal
from optbench.artifact.manifest import Kind
from optbench.errors import StepError
from optbench.machine.cpu import read_machine
from optbench.measure.fidelity import measure_fidelity
from optbench.model.tokenizer import encode_batch, load_tokenizer
from optbench.steps.base import CalibrationTexts, StepContext, StepReport
from optbench.steps.calibration.samples import CalibrationInput, calibration_inputs
from optbench.steps.compress_weights import DYNAMIC_GROUP, CompressWeights, choose_dynamic_group
from optbench.steps.openvino.graph import constant_behind, find_weight_matmuls, quiet_nncf

TEXTS = [
    "red running shoe",
    "waterproof boot",
    "small oak desk lamp",
    "wireless mouse",
    "large blue chair",
    "laptop charger cable",
    "red boot",
    "oak chair small desk",
]
PRODUCTS = [
    "wireless noise cancelling headphones",
    "usb c charging cable 2 m",
    "4k monitor 27 inch",
    "ink cartridge black",
    "waterproof hiking boots for women",
    "cotton t-shirt, three pack",
    "stainless steel water bottle",
    "gaming laptop 16 gb ram",
    "led desk lamp with dimmer",
    "mechanical keyboard brown switches",
    "baby stroller foldable",
    "electric toothbrush heads",
]
LINEAR = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")


@pytest.fixture
def run(tmp_path: Path, make_context: Callable[..., StepContext]) -> Callable[..., tuple[Artifact, StepReport]]:
    """Run the step into a folder of its own and seal it."""
    number = iter(range(100))

    def run_step(source: Artifact, *, texts: Sequence[str] = TEXTS, **options: Any) -> tuple[Artifact, StepReport]:
        folder = tmp_path / f"run{next(number)}"
        (folder / "staging").mkdir(parents=True)
        (folder / "scratch").mkdir()
        context = dataclasses.replace(make_context(values={CalibrationTexts: texts}), scratch=folder / "scratch")
        report = CompressWeights(**options).run(source, folder / "staging", context)
        return seal(folder / "staging", folder / "sealed", Kind.OPENVINO, source.weights), report

    return run_step


@pytest.fixture
def tiny(make_artifact: Callable[..., Artifact]) -> Artifact:
    return make_artifact(Kind.OPENVINO, "BertModel", "mean")


@pytest.fixture
def minilm(minilm: Callable[[Kind], Artifact]) -> Artifact:
    """The real model as OpenVINO IR, its weights [in, out] as ONNX has them."""
    return minilm(Kind.OPENVINO)


def make_broken_model(source: Artifact, texts: Sequence[str]) -> ov.Model:
    """What NNCF 3.4 makes, without a word, of an int4 scale estimation on weights that lie [in, out]: noise."""
    model = ov.Core().read_model(source.main_file)
    inputs = calibration_inputs(source.path, texts, 4, 0, "test")
    tables = [node.get_friendly_name() for node in model.get_ordered_ops() if node.get_type_name() == "Gather"]
    with quiet_nncf() as (nncf, _):
        return nncf.compress_weights(
            model,
            mode=nncf.CompressWeightsMode.INT4_SYM,
            group_size=64,
            all_layers=True,
            scale_estimation=True,
            dataset=nncf.Dataset(inputs),
            subset_size=len(inputs),
            ignored_scope=nncf.IgnoredScope(names=tables, validate=False),
        )


def embed(model: Artifact | ov.Model, source: Artifact, texts: Sequence[str], *, as_shipped: bool = False) -> NDArray[np.float32]:
    """Sentence embeddings in float32; activations are quantized at run time only `as_shipped`."""
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2}
    if not as_shipped:
        options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "0"
    compiled = ov.Core().compile_model(model.main_file if isinstance(model, Artifact) else model, "CPU", options)
    tokenizer = load_tokenizer(source.path)
    rows = []
    for text in texts:
        ids, mask = encode_batch(tokenizer, [text])
        rows.append(np.array(compiled([ids, mask])["sentence_embedding"][0]))
    return np.stack(rows)


def dynamic_group(artifact: Artifact) -> str:
    return str(ov.Core().read_model(artifact.main_file).get_rt_info(list(DYNAMIC_GROUP)).astype(str))


def weight_elements(artifact: Artifact) -> dict[str, str]:
    """Element type of each weight by module, read off the written file."""
    model = ov.Core().read_model(artifact.main_file)
    found = {}
    for node in model.get_ordered_ops():
        constant = constant_behind(node.input_value(1))[0] if node.get_type_name() == "MatMul" else None
        if constant is not None:
            found[node.get_friendly_name()] = constant.get_element_type().get_type_name()
    return found


@pytest.mark.parametrize(
    ("options", "element"),
    [
        ({"weights": "int8_sym"}, "i8"),
        ({"weights": "int8_asym"}, "u8"),
        ({"weights": "int4_sym", "group_size": 16}, "i4"),
        ({"weights": "int4_asym", "group_size": 16}, "u4"),
        ({"weights": "int4_sym", "group_size": 16, "method": "scale_estimation"}, "i4"),
        ({"weights": "int4_sym", "group_size": 16, "method": "nncf_gptq"}, "i4"),
        ({"weights": "int4_sym", "group_size": 16, "method": "gptq"}, "i4"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_each_of_the_six_weights_a_layer_is_compressed_and_nothing_else(
    tiny: Artifact, run: Callable[..., tuple[Artifact, StepReport]], options: dict[str, Any], element: str
) -> None:
    compressed, report = run(tiny, **options)
    assert report.matched == {element: 12}
    assert report.refused == ()
    assert sorted(weight_elements(compressed).values()) == [element] * 12
    model = ov.Core().read_model(compressed.main_file)
    tables = [node for node in model.get_ordered_ops() if node.get_friendly_name().endswith("embeddings.weight")]
    assert {table.get_element_type().get_type_name() for table in tables} == {"f32"}


def test_source_is_byte_identical_afterwards(tiny: Artifact, run: Callable[..., tuple[Artifact, StepReport]]) -> None:
    run(tiny, weights="int4_sym", group_size=16, method="gptq")
    assert open_artifact(tiny.path) == tiny


def test_companions_come_along(tiny: Artifact, run: Callable[..., tuple[Artifact, StepReport]]) -> None:
    compressed, _ = run(tiny, weights="int8_asym")
    for name in ("tokenizer.json", "modules.json", "config.json", "1_Pooling/config.json"):
        assert hash_file(compressed.path / name) == hash_file(tiny.path / name)
    assert not [name for name in compressed.manifest.files if "transposed" in name or name.startswith("onnx")]


@pytest.mark.parametrize("method", ["nearest", "scale_estimation", "nncf_gptq", "gptq"])
def test_two_runs_give_the_same_bytes(tiny: Artifact, run: Callable[..., tuple[Artifact, StepReport]], method: str) -> None:
    first, second = (run(tiny, weights="int4_sym", group_size=16, method=method)[0].sha256 for _ in range(2))
    assert first == second


def test_excluded_modules_stay_in_float_and_say_so(tiny: Artifact, run: Callable[..., tuple[Artifact, StepReport]]) -> None:
    compressed, report = run(tiny, weights="int8_asym", exclude=("*.layer.0.output.dense",))
    assert report.matched == {"u8": 11}
    assert [refusal.reason for refusal in report.refused] == ["exclude names it"]
    assert report.refused[0].node.endswith("layer.0.output.dense")
    remaining = find_weight_matmuls(ov.Core().read_model(compressed.main_file))[0]
    assert [matmul.module for matmul in remaining] == [report.refused[0].node]


def test_own_gptq_leaves_excluded_modules_alone_too(tiny: Artifact, run: Callable[..., tuple[Artifact, StepReport]]) -> None:
    _, report = run(tiny, weights="int4_sym", group_size=16, method="gptq", exclude=("*.output.dense",))
    assert report.matched == {"i4": 8}


def test_modules_go_by_their_checkpoint_names(tiny: Artifact) -> None:
    matmuls, _ = find_weight_matmuls(ov.Core().read_model(tiny.main_file))
    assert len(matmuls) == 12
    assert all(any(matmul.module.endswith(name) for name in LINEAR) for matmul in matmuls)


def test_ratio_sends_the_rest_to_the_backup(tiny: Artifact, run: Callable[..., tuple[Artifact, StepReport]]) -> None:
    _, report = run(tiny, weights="int4_sym", group_size=16, ratio=0.5)
    assert report.matched.keys() == {"i4", "u8"}
    assert sum(report.matched.values()) == 12


def test_backup_none_leaves_the_rest_in_float_and_says_so(tiny: Artifact, run: Callable[..., tuple[Artifact, StepReport]]) -> None:
    _, report = run(tiny, weights="int4_sym", group_size=16, ratio=0.5, backup="none", expect=3)
    assert report.matched.keys() == {"i4"}
    assert {refusal.reason for refusal in report.refused} == {"NNCF left it in float (int4_sym, backup none)"}
    assert report.matched["i4"] + len(report.refused) == 12


def test_last_layer_goes_to_the_backup_without_all_layers(tiny: Artifact, run: Callable[..., tuple[Artifact, StepReport]]) -> None:
    _, report = run(tiny, weights="int4_sym", group_size=16, all_layers=False)
    assert report.matched == {"i4": 11, "u8": 1}


def test_int8_vectors_stay_close_to_their_source(tiny: Artifact, run: Callable[..., tuple[Artifact, StepReport]]) -> None:
    compressed, _ = run(tiny, weights="int8_asym")
    fidelity = measure_fidelity(embed(tiny, tiny, TEXTS), embed(compressed, tiny, TEXTS))
    # A row of 32 weights of deviation 0.25 spans about 1.1: a step of 1.1 / 255, and an error of step / sqrt(12) = 0.5 % of the
    # deviation, for each of 12 products in a row. Errors add in squares: 1.7 % of a vector, a cosine of 1 - 0.017^2 / 2.
    assert fidelity.minimum > 1 - 0.017**2


def test_codes_are_within_half_a_step_of_the_weights(tiny: Artifact, run: Callable[..., tuple[Artifact, StepReport]]) -> None:
    compressed, _ = run(tiny, weights="int8_sym")
    sources = {
        matmul.node.get_friendly_name(): np.array(matmul.constant.data if matmul.transposed else matmul.constant.data.T)
        for matmul in find_weight_matmuls(ov.Core().read_model(tiny.main_file))[0]
    }
    for node in ov.Core().read_model(compressed.main_file).get_ordered_ops():
        if node.get_friendly_name() in sources:
            weight = sources[node.get_friendly_name()]
            codes, way = constant_behind(node.input_value(1))
            assert codes is not None
            scale = next(step.input_value(1).get_node().data for step in way if step.get_type_name() == "Multiply").astype(np.float32)
            # NNCF's scale puts the largest weight on -128, so its opposite is cut off at 127; float16 rounds the scale by up to
            # 2^-11, and 128 codes by as many parts of a step.
            cut = codes.data == 127
            assert (np.abs(codes.data * scale - weight)[~cut] <= (np.abs(scale) * (0.5 + 128 * 2**-11) * np.ones_like(weight))[~cut]).all()
            assert (np.abs(codes.data * scale - weight) <= np.abs(scale) * (1 + 128 * 2**-11)).all()


@pytest.mark.parametrize(
    ("options", "least"),
    # Measured over 99 product queries, mean: .9998, .969, .975, .988; the twelve texts here come within .006 of that.
    [
        ({"weights": "int8_asym"}, 0.999),
        ({"weights": "int4_sym", "group_size": 64}, 0.955),
        ({"weights": "int4_sym", "group_size": 64, "method": "gptq"}, 0.98),
    ],
    ids=["int8", "nearest", "gptq"],
)
def test_real_model_keeps_its_measured_cosine(
    minilm: Artifact, run: Callable[..., tuple[Artifact, StepReport]], options: dict[str, Any], least: float
) -> None:
    compressed, report = run(minilm, texts=PRODUCTS, **options)
    assert sum(report.matched.values()) == 36
    reference = embed(minilm, minilm, PRODUCTS)
    assert measure_fidelity(reference, embed(compressed, minilm, PRODUCTS)).mean > least
    # Run-time int8 activations cost less than .005 at any legal group (see AUTO_GROUP_MAX).
    assert measure_fidelity(reference, embed(compressed, minilm, PRODUCTS, as_shipped=True)).mean > least - 0.005


def test_broken_quantizer_is_seen_by_fidelity(minilm: Artifact) -> None:
    broken = make_broken_model(minilm, PRODUCTS)
    fidelity = measure_fidelity(embed(minilm, minilm, PRODUCTS), embed(broken, minilm, PRODUCTS))
    assert abs(fidelity.mean) < 0.3  # twelve vectors of 384 without relation: 0 give or take 1 / sqrt(384 * 12); measured -.004


def test_same_method_is_sound_once_weights_are_transposed(minilm: Artifact, run: Callable[..., tuple[Artifact, StepReport]]) -> None:
    compressed, _ = run(minilm, texts=PRODUCTS, weights="int4_sym", group_size=64, method="scale_estimation", samples=4)
    assert measure_fidelity(embed(minilm, minilm, PRODUCTS), embed(compressed, minilm, PRODUCTS)).mean > 0.955


def test_nncf_gptq_on_untransposed_weights_still_refuses(minilm: Artifact) -> None:
    """The day this fails, NNCF no longer needs the rewrite."""
    model = ov.Core().read_model(minilm.main_file)
    inputs: list[CalibrationInput] = calibration_inputs(minilm.path, PRODUCTS, 1, 0, "test")
    with quiet_nncf() as (nncf, _), pytest.raises(RuntimeError, match="Transpose is not supported"):
        nncf.compress_weights(
            model, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=64, gptq=True, dataset=nncf.Dataset(inputs), subset_size=1
        )


@pytest.mark.parametrize(
    ("widths", "group"),
    [
        ({1024, 4096}, 256),  # larger is legal, not faster, and less accurate
        ({384, 1536}, 128),
        ({128}, 128),  # the int4 group
        ({64, 1024}, 64),
        ({96}, 32),
        ({16}, 16),
        ({24}, 0),  # OpenVINO takes multiples of 16
    ],
)
def test_auto_group_is_the_largest_power_of_two_that_every_layer_honors(widths: set[int], group: int) -> None:
    assert choose_dynamic_group(widths) == group


def test_group_travels_in_the_ir_and_is_applied(tiny: Artifact, run: Callable[..., tuple[Artifact, StepReport]]) -> None:
    compressed, report = run(tiny, weights="int8_asym")
    assert dynamic_group(compressed) == "32"
    assert report.facts["dynamic_quantization_group"] == 32
    moved = np.abs(embed(compressed, tiny, TEXTS, as_shipped=True) - embed(compressed, tiny, TEXTS)).max()
    assert moved > 0 or not read_machine().has_vnni  # OpenVINO rounds activations only where the CPU's int8 products are worth it


def test_group_off_is_written_as_zero_and_applied(tiny: Artifact, run: Callable[..., tuple[Artifact, StepReport]]) -> None:
    compressed, _ = run(tiny, weights="int8_asym", dynamic_quantization_group="off")
    assert dynamic_group(compressed) == "0"
    np.testing.assert_array_equal(embed(compressed, tiny, TEXTS, as_shipped=True), embed(compressed, tiny, TEXTS))


def test_int4_group_bounds_the_dynamic_group(tiny: Artifact, run: Callable[..., tuple[Artifact, StepReport]]) -> None:
    compressed, _ = run(tiny, weights="int4_sym", group_size=16)
    assert dynamic_group(compressed) == "16"


@pytest.mark.parametrize(("options", "shared"), [({"weights": "int8_asym"}, "32, 64"), ({"weights": "int4_sym", "group_size": 16}, "16")])
def test_group_that_openvino_would_ignore_is_an_error(
    tiny: Artifact, run: Callable[..., tuple[Artifact, StepReport]], options: dict[str, Any], shared: str
) -> None:
    with pytest.raises(
        StepError, match=rf"dynamic_quantization_group 64 does not divide .*\({shared}\).*use a multiple of 16 that divides"
    ):
        run(tiny, dynamic_quantization_group=64, **options)


def test_pattern_that_matches_nothing_names_the_closest_modules(tiny: Artifact, run: Callable[..., tuple[Artifact, StepReport]]) -> None:
    with pytest.raises(StepError, match=r"exclude: '\*\.layer\.9\.output\.dense' matches no operation; the closest are \S+"):
        run(tiny, weights="int8_asym", exclude=("*.layer.9.output.dense",))


def test_fewer_matmuls_than_expected_is_an_error_that_says_what_to_set(
    tiny: Artifact, run: Callable[..., tuple[Artifact, StepReport]]
) -> None:
    with pytest.raises(StepError, match=r"finds 12 MatMuls to compress, 13 are expected.*set expect: 12"):
        run(tiny, weights="int8_asym", expect=13)


def test_compressing_twice_is_an_error_that_lists_why_each_was_left(
    tiny: Artifact, run: Callable[..., tuple[Artifact, StepReport]]
) -> None:
    compressed, _ = run(tiny, weights="int8_asym")
    with pytest.raises(StepError, match=r"finds 0 MatMuls .* 12 are expected.*query: its weight is u8: it is compressed already;"):
        run(compressed, weights="int8_asym")


def test_group_that_does_not_divide_k_names_the_modules(tiny: Artifact, run: Callable[..., tuple[Artifact, StepReport]]) -> None:
    with pytest.raises(StepError, match=r"group_size 64 does not divide K of 10 MatMuls \(\S+ has K = 32;.*use a divisor of 32"):
        run(tiny, weights="int4_sym", group_size=64)


def test_method_that_reads_texts_refuses_to_run_without(tiny: Artifact, run: Callable[..., tuple[Artifact, StepReport]]) -> None:
    with pytest.raises(StepError, match=r"compress_weights \(method gptq\): no calibration texts"):
        run(tiny, texts=(), weights="int4_sym", group_size=16, method="gptq")


def test_awq_that_finds_no_pattern_is_an_error(tiny: Artifact, run: Callable[..., tuple[Artifact, StepReport]]) -> None:
    with pytest.raises(StepError, match="awq finds none of its patterns in this graph"):
        run(tiny, weights="int4_sym", group_size=16, method="awq")


def test_only_methods_that_read_texts_ask_for_them() -> None:
    assert CompressWeights(weights="int8_asym").inputs() == ()
    assert CompressWeights(weights="int4_sym").inputs() == ()
    assert CompressWeights(weights="int4_sym", method="gptq").inputs() == (CalibrationTexts(),)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "int8_asym", "group_size": 64}, "group_size: for int4 weights only"),
        ({"weights": "int8_sym", "method": "gptq", "ratio": 0.5}, "method, ratio: for int4 weights only"),
        ({"weights": "int4_asym", "method": "gptq"}, "method gptq rounds every layer to int4_sym"),
        ({"weights": "int4_sym", "method": "gptq", "ratio": 0.5}, "method gptq rounds every layer to int4_sym"),
        ({"weights": "int4_sym", "damping": 0.1}, "damping: for method gptq only"),
        ({"weights": "int4_sym", "ratio": 0.5, "backup": "none"}, "set expect to the number"),
        ({"weights": "int4_sym", "dynamic_quantization_group": 24}, "OpenVINO accepts multiples of 16"),
        ({"weights": "int4_sym", "group_size": 8}, "greater than or equal to 16"),
        ({"weights": "int3"}, "int4_sym"),
        ({"weights": "int4_sym", "groupsize": 64}, "Extra inputs are not permitted"),
    ],
)
def test_options_that_cannot_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CompressWeights(**options)


@pytest.mark.parametrize("options", [{"weights": "int8_sym"}, {"weights": "int8_asym"}, {"weights": "int4_sym", "method": "nearest"}])
def test_step_is_read_back_from_its_own_json(options: dict[str, Any]) -> None:
    step = CompressWeights(**options)
    assert CompressWeights.model_validate_json(step.model_dump_json()) == step


def test_step_prints_nothing(tiny: Artifact, run: Callable[..., tuple[Artifact, StepReport]], capfd: pytest.CaptureFixture[str]) -> None:
    run(tiny, weights="int4_sym", group_size=16, method="scale_estimation")
    assert tuple(capfd.readouterr()) == ("", "")
