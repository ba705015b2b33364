"""Artifacts of the benchmarks: a recipe's base, its plain export and its result, from optbench's cache."""

import os
from dataclasses import dataclass
from pathlib import Path

from optbench.artifact.folder import Artifact
from optbench.artifact.manifest import Weights
from optbench.cli.options import cache_at
from optbench.machine.disk import free_disk
from optbench.recipe.load import load_recipe
from optbench.recipe.schema import Recipe
from optbench.run.cache import Cache
from optbench.run.listener import Silent
from optbench.run.make import make_stages
from optbench.run.plan import BASELINE_EXPORT, Options, Run, make_plan

__all__ = ["ROOT", "Made", "make_artifacts", "user_cache"]

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Made:
    """A recipe's artifacts.

    Attributes:
        recipe: from recipes/.
        weights: real or random.
        base: the checkpoint.
        export: its plain fp32 ONNX export, which the runtimes' fp32 baselines run.
        final: the output of the recipe's last step.
    """

    recipe: Recipe
    weights: Weights
    base: Artifact
    export: Artifact
    final: Artifact


def user_cache() -> Cache:
    """The cache of the command line, shared with `optbench apply`."""
    folder = os.environ.get("OPTBENCH_CACHE")
    return cache_at(Path(folder) if folder else None)


def make_artifacts(name: str, cache: Cache) -> Made:
    """Make a recipe's artifacts without measuring them; with random weights unless a package has the real ones.

    Args:
        name: of a recipe in recipes/.
        cache: reads and stores the artifacts.
    """
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml")
    weights: Weights = "real" if recipe.base.source.startswith("package:") else "random"
    options = Options(cache=cache, weights=weights)
    free_disk(cache.root, make_plan(Run(recipe, options)).missing_bytes, f"recipe {name}")
    stages = make_stages(Run(recipe, options), Silent())
    plain = recipe.model_copy(update={"steps": (BASELINE_EXPORT,)})
    export = make_stages(Run(plain, options), Silent())[-1]
    return Made(recipe, weights, stages[0].artifact, export.artifact, stages[-1].artifact)
