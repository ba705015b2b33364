"""Every loader on one folder of each precision: does it load, and does it give our own vectors?

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
from optbench.artifact.folder import Kind
from optbench.cli.terminal import print_tables
from optbench.loaders.conformance import LOADERS, check_loaders, loader_table, loader_texts
from optbench.loaders.second_graph import extend
from optbench.recipe.load import load_recipe
from optbench.run.apply import Silent
from optbench.run.make import calibration_texts, make_base, make_stage
from optbench.run.plan import Cache
from optbench.steps import CompressWeights, ConvertOpenvino, ExportOnnx, QuantizeDynamic, QuantizeStatic, QuantizeStaticQdq, Step

# Each ends in one format. An ONNX graph is converted for the loaders of the other; beside an IR lies the fp32 ONNX graph.
VARIANTS: dict[str, tuple[Step, ...]] = {
    "fp32": (ExportOnnx(),),
    "dynamic int8": (ExportOnnx(), QuantizeDynamic()),
    "static int8, ONNX": (ExportOnnx(), QuantizeStaticQdq()),
    "static int8, OpenVINO": (ExportOnnx(), ConvertOpenvino(), QuantizeStatic()),
    "int4": (ExportOnnx(), ConvertOpenvino(), CompressWeights(weights="int4_sym", group_size=64)),
}


def main() -> None:
    """Parse, make, load, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--weights", choices=["real", "random"], default="real")
    parser.add_argument("--cache", type=Path, default=Path(platformdirs.user_cache_dir("optbench")))
    parser.add_argument("--only", choices=VARIANTS, action="append")
    parser.add_argument("--loaders", default=",".join(LOADERS))
    arguments = parser.parse_args()
    recipe, cache = load_recipe(arguments.recipe), Cache(arguments.cache.absolute())
    calibration = calibration_texts(recipe)
    base = make_base(recipe, cache, arguments.weights, None, Silent())
    for name in arguments.only or VARIANTS:
        made = [base.artifact]
        for step in VARIANTS[name]:
            made.append(make_stage(step, step.step, made[-1], recipe, cache, Silent(), calibration=calibration, force=False).artifact)
        fp32 = made[1]
        with tempfile.TemporaryDirectory(dir=cache.root, prefix="loaders-") as scratch:
            folder = Path(scratch) / "extended"
            extend(made[-1].path, folder, other=fp32.path if made[-1].kind is Kind.OPENVINO else None)
            print(f"{recipe.name}, {name}: {made[-1].kind}, {made[-1].size_bytes / 1e6:.0f} MB, {arguments.weights} weights", flush=True)
            rows = check_loaders(folder, arguments.loaders.split(","), loader_texts(), cache.environments, lambda _message, _share: None)
            print_tables([loader_table(rows)])


if __name__ == "__main__":
    main()
