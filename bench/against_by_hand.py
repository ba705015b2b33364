"""Is an exported artifact as fast as one made by hand, in the same run?

    python bench/against_by_hand.py recipes/gte-large.yaml --weights random

By hand, from the same fp32 export: OpenVINO static int8 by `nncf.quantize(model, dataset, model_type=TRANSFORMER)`, and
ONNX Runtime's `quantize_dynamic` per channel, with and without its SkipLayerNormFusion. Prints the median of each at each length
and the ratio artifact / best by hand, with its 95 % interval over processes.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import platformdirs

import optbench  # noqa: F401  # first: it keeps openvino's telemetry from loading
from optbench.artifact.folder import Artifact, copy_companions
from optbench.artifact.manifest import Kind
from optbench.engines.onnxruntime import OnnxRuntime
from optbench.engines.openvino import OpenVino
from optbench.measure.latency import measure_latency
from optbench.measure.subject import Subject
from optbench.model.tokenizer import encode_batch, load_tokenizer
from optbench.recipe.load import load_recipe
from optbench.run.cache import Cache
from optbench.run.listener import Silent
from optbench.run.make import make_stages
from optbench.run.plan import BASELINE_EXPORT, Options, Run


def quantize_openvino(export: Artifact, texts: Sequence[str], out: Path) -> None:
    """NNCF's static int8 with the options of its own documentation."""
    import nncf
    import openvino as ov

    tokenizer = load_tokenizer(export.path)
    batches = [encode_batch(tokenizer, [text]) for text in texts]
    dataset = nncf.Dataset([{"input_ids": ids, "attention_mask": mask} for ids, mask in batches])
    model = nncf.quantize(ov.Core().read_model(export.main_file), dataset, model_type=nncf.ModelType.TRANSFORMER, subset_size=64)
    copy_companions(export.path, out)
    (out / "openvino").mkdir(parents=True)
    ov.save_model(model, out / "openvino" / "openvino_model.xml", compress_to_fp16=False)


def quantize_onnxruntime(export: Artifact, out: Path) -> None:
    """ONNX Runtime's dynamic int8, per channel, MatMul only."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    copy_companions(export.path, out)
    (out / "onnx").mkdir(parents=True)
    quantize_dynamic(
        export.main_file,
        out / "onnx" / "model.onnx",
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
        extra_options={"MatMulConstBOnly": True},
    )


def main() -> None:
    """Make both, time them and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--weights", choices=["real", "random"], default="real")
    parser.add_argument("--cache", type=Path, default=Path(platformdirs.user_cache_dir("optbench")))
    parser.add_argument("--output", type=Path, default=Path("exported"))
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--processes", type=int, default=6, help="fresh processes per model; the rounds are divided among them")
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe)
    cache = Cache(arguments.cache.absolute())
    run = Run(recipe.model_copy(update={"steps": (BASELINE_EXPORT,)}), Options(cache=cache, weights=arguments.weights))
    export = make_stages(run, Silent())[-1].artifact
    with tempfile.TemporaryDirectory(dir=cache.root) as folder:
        static, dynamic = Path(folder) / "static", Path(folder) / "dynamic"
        quantize_openvino(export, run.calibration_texts, static)
        quantize_onnxruntime(export, dynamic)
        unfused = OnnxRuntime(disabled_optimizers=("SkipLayerNormFusion",))
        subjects = [
            Subject.read(arguments.output / recipe.name, label="optbench"),
            Subject(Artifact(Kind.OPENVINO, static, "by hand"), OpenVino(), label="openvino static int8"),
            Subject(Artifact(Kind.ONNX, dynamic, "by hand"), OnnxRuntime(), label="onnxruntime dynamic int8"),
            Subject(Artifact(Kind.ONNX, dynamic, "by hand"), unfused, label="the same, no SkipLayerNormFusion"),
        ]
        lengths = recipe.workload.lengths
        timings = measure_latency(subjects, lengths, rounds=arguments.rounds, processes=arguments.processes)
    print(f"{recipe.name}, {arguments.weights} weights, ms, median of {arguments.rounds} rounds in {arguments.processes} processes")
    for timing in timings:
        print(f"{timing.label:34}", *(f"{timing.median_ms(length):8.2f}" for length in lengths))
    mine, *others = timings
    for length in lengths:
        best = min(others, key=lambda timing: timing.median_ms(length))
        ratio = best.times_as_fast_as(mine, length)
        print(f"{length:4} tokens: {mine.median_ms(length):.2f} ms, {ratio.point:.3f} ({ratio.low:.3f}..{ratio.high:.3f}) of {best.label}")


if __name__ == "__main__":
    main()
