"""What the benches run on: a recipe's base, its plain export and its result, out of optbench's cache or made into it."""

import os
from dataclasses import dataclass
from pathlib import Path

from optbench.artifact.folder import Artifact, Weights
from optbench.cli.options import cache_at
from optbench.machine.cpu import read_machine
from optbench.machine.disk import free_disk
from optbench.recipe.load import load_recipe
from optbench.recipe.schema import Recipe
from optbench.run.apply import Silent
from optbench.run.make import calibration_texts, make_base, make_stage
from optbench.run.plan import Cache, make_plan
from optbench.steps import ExportOnnx

__all__ = ["ROOT", "Made", "make_artifacts", "user_cache"]

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Made:
    """A recipe's artifacts.

    Attributes:
        recipe: as it is read from recipes/.
        weights: real or random.
        base: the checkpoint.
        export: its plain fp32 ONNX export, which the runtimes' fp32 baselines run.
        final: what the recipe's last step made.
    """

    recipe: Recipe
    weights: Weights
    base: Artifact
    export: Artifact
    final: Artifact


def user_cache() -> Cache:
    """The cache of the command line, so that what `optbench apply` made is found."""
    folder = os.environ.get("OPTBENCH_CACHE")
    return cache_at(Path(folder) if folder else None)


def make_artifacts(name: str, cache: Cache) -> Made:
    """Make a recipe's artifacts without measuring them; with random weights unless a package brings the real ones.

    Args:
        name: of a recipe in recipes/.
        cache: where they are found, or put.
    """
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml")
    weights: Weights = "real" if recipe.base.source.startswith("package:") else "random"
    calibration, quiet = calibration_texts(recipe), Silent()
    plan = make_plan(recipe, cache, read_machine(), weights=weights, calibration=calibration)
    free_disk(cache.root, plan.missing_bytes, f"recipe {name}")
    base = make_base(recipe, cache, weights, None, quiet).artifact
    final = base
    for index, step in enumerate(recipe.steps):
        label = f"{index} {step.step}"
        final = make_stage(step, label, final, recipe, cache, quiet, calibration=calibration, force=False).artifact
    plain = ExportOnnx(step="export_onnx")
    export = make_stage(plain, "plain export", base, recipe, cache, quiet, calibration=calibration, force=False).artifact
    return Made(recipe, weights, base, export, final)
