"""Every loader on one folder of each precision: does it load, and are its vectors the same as ours?

    python bench/loaders.py recipes/minilm-l6.yaml
    python bench/loaders.py recipes/gte-large.yaml --weights random --only fp32

Each variant is made from the recipe's base and extended with a graph of the other format, then `optbench verify --loaders all`'s
check runs on it. The first run installs the two pinned environments.
"""

import argparse
import tempfile
from pathlib import Path

import platformdirs

import optbench  # noqa: F401  # first: it keeps openvino's telemetry from loading
from optbench.artifact.manifest import Kind
from optbench.cli.terminal import print_tables
from optbench.loaders.conformance import check_loaders, loader_names, loader_texts
from optbench.loaders.second_graph import extend
from optbench.recipe.load import load_recipe
from optbench.report.loaders import loader_table
from optbench.run.cache import Cache
from optbench.run.listener import Silent
from optbench.run.make import make_stages
from optbench.run.plan import Options, Run
from optbench.steps import Step
from optbench.steps.compress_weights import CompressWeights
from optbench.steps.convert_openvino import ConvertOpenvino
from optbench.steps.export_onnx import ExportOnnx
from optbench.steps.quantize_dynamic import QuantizeDynamic
from optbench.steps.quantize_static import QuantizeStatic
from optbench.steps.quantize_static_qdq import QuantizeStaticQdq

# Each ends in one format. An ONNX graph is converted for the loaders of the other; an IR gets the fp32 ONNX graph.
VARIANTS: dict[str, tuple[Step, ...]] = {
    "fp32": (ExportOnnx(),),
    "dynamic int8": (ExportOnnx(), QuantizeDynamic()),
    "static int8, ONNX": (ExportOnnx(), QuantizeStaticQdq()),
    "static int8, OpenVINO": (ExportOnnx(), ConvertOpenvino(), QuantizeStatic()),
    "int4": (ExportOnnx(), ConvertOpenvino(), CompressWeights(weights="int4_sym", group_size=64)),
}


def main() -> None:
    """Make the variants, load them and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--weights", choices=["real", "random"], default="real")
    parser.add_argument("--cache", type=Path, default=Path(platformdirs.user_cache_dir("optbench")))
    parser.add_argument("--only", choices=VARIANTS, action="append")
    parser.add_argument("--loaders", default="all")
    arguments = parser.parse_args()
    recipe, cache = load_recipe(arguments.recipe), Cache(arguments.cache.absolute())
    for name in arguments.only or VARIANTS:
        variant = recipe.model_copy(update={"steps": VARIANTS[name]})
        stages = make_stages(Run(variant, Options(cache=cache, weights=arguments.weights)), Silent())
        fp32, made = stages[1].artifact, stages[-1].artifact
        with tempfile.TemporaryDirectory(dir=cache.root, prefix="loaders-") as scratch:
            folder = Path(scratch) / "extended"
            extend(made.path, folder, other=fp32.path if made.kind is Kind.OPENVINO else None)
            print(f"{recipe.name}, {name}: {made.kind}, {made.size_bytes / 1e6:.0f} MB, {arguments.weights} weights", flush=True)
            rows = check_loaders(folder, loader_names(arguments.loaders), loader_texts(), cache.environments, lambda _message, _share: None)
            print_tables([loader_table(rows)])


if __name__ == "__main__":
    main()
