"""Is an exported artifact as fast as what a careful engineer makes by hand, in the same run?

    python bench/against_by_hand.py recipes/gte-large.yaml --weights random

By hand, from the same fp32 export: OpenVINO static int8 as `nncf.quantize(model, dataset, model_type=TRANSFORMER)` gives it, and
ONNX Runtime's `quantize_dynamic` per channel, with and without its SkipLayerNormFusion. Prints the median of each at each length
and the ratio artifact / best by hand, taken process by process with its 95 % interval.
"""

import argparse
import tempfile
from pathlib import Path

import platformdirs

import optbench  # noqa: F401  # first: it keeps openvino's telemetry from loading
from optbench.artifact.folder import Artifact, Kind, copy_companions, open_artifact
from optbench.encoder import choose_engine
from optbench.engines import OnnxRuntime, OpenVino
from optbench.measure.latency import Cell, measure_latency
from optbench.model.tokenizer import encode_batch, load_tokenizer
from optbench.recipe.load import load_recipe
from optbench.recipe.schema import Recipe
from optbench.run.apply import Silent
from optbench.run.make import calibration_texts, make_base, make_stage
from optbench.run.plan import Cache
from optbench.steps import ExportOnnx


def quantize_openvino(export: Artifact, recipe: Recipe, out: Path) -> None:
    """NNCF's static int8 with the options of its own documentation."""
    import nncf
    import openvino as ov

    tokenizer = load_tokenizer(export.path)
    batches = [encode_batch(tokenizer, [text]) for text in calibration_texts(recipe)]
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
    """Parse, make, time, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--weights", choices=["real", "random"], default="real")
    parser.add_argument("--cache", type=Path, default=Path(platformdirs.user_cache_dir("optbench")))
    parser.add_argument("--output", type=Path, default=Path("exported"))
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--processes", type=int, default=6, help="how often each is opened anew; rounds are shared out among these")
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe)
    cache = Cache(arguments.cache.absolute())
    base = make_base(recipe, cache, arguments.weights, None, Silent())
    export = make_stage(ExportOnnx(), "export", base.artifact, recipe, cache, Silent(), calibration=[], force=False).artifact
    ours = open_artifact(arguments.output / recipe.name, verify=False)
    with tempfile.TemporaryDirectory(dir=cache.root) as folder:
        static, dynamic = Path(folder) / "static", Path(folder) / "dynamic"
        quantize_openvino(export, recipe, static)
        quantize_onnxruntime(export, dynamic)
        cells = [
            Cell(label="optbench", kind=ours.kind, path=ours.path, sha256=ours.sha256, engine=choose_engine(ours, None, {})),
            Cell(label="openvino static int8", kind=Kind.OPENVINO, path=static, sha256="by hand", engine=OpenVino()),
            Cell(label="onnxruntime dynamic int8", kind=Kind.ONNX, path=dynamic, sha256="by hand", engine=OnnxRuntime()),
            Cell(
                label="the same, no SkipLayerNormFusion",
                kind=Kind.ONNX,
                path=dynamic,
                sha256="by hand",
                engine=OnnxRuntime(disabled_optimizers=("SkipLayerNormFusion",)),
            ),
        ]
        lengths = recipe.workload.lengths
        timings = measure_latency(cells, lengths, rounds=arguments.rounds, processes=arguments.processes)
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
