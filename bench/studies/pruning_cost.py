"""Time and peak memory of pruning alone, on random weights.

    python bench/studies/pruning_cost.py recipes/arctic-l-small.yaml --keep 0.7

Uses the recipe's base and calibration texts. A share of the multiply-adds replaces the recipe's latency budget, so no layers are timed.
"""

import argparse
from pathlib import Path

import platformdirs

from optbench.recipe.load import load_recipe
from optbench.run.cache import Cache
from optbench.run.listener import Silent
from optbench.run.make import make_stages
from optbench.run.plan import Options, Run
from optbench.steps.prune_structured import PruneStructured


def main() -> None:
    """Prune the base and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--keep", type=float, default=0.7, help="share of the multiply-adds to keep")
    parser.add_argument("--cache", type=Path, default=Path(platformdirs.user_cache_dir("optbench")))
    arguments = parser.parse_args()
    recipe, cache = load_recipe(arguments.recipe), Cache(arguments.cache.absolute())
    pruning = recipe.model_copy(update={"steps": (PruneStructured(keep_flops=arguments.keep, int8=True),)})
    options = Options(cache=cache, weights="random", from_step="prune_structured")
    outcome = make_stages(Run(pruning, options), Silent())[-1].outcome
    facts = outcome.report.facts
    print(
        f"{recipe.name}, random weights, {facts['calibration_texts']} texts of {facts['calibration_tokens']} tokens: "
        f"{outcome.seconds:.0f} s, peak {outcome.peak_rss_bytes / 1e9:.2f} GB, kept {facts['kept_flops']:.3f}"
    )


if __name__ == "__main__":
    main()
