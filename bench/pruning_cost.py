"""What pruning a body takes: minutes and peak memory of the step alone, on random weights.

    python bench/pruning_cost.py recipes/arctic-l-small.yaml --keep 0.7

The recipe's base and calibration texts; its budget is replaced by a share of the multiply-adds, which needs no layer timed first.
"""

import argparse
from pathlib import Path

import platformdirs

from optbench.recipe.load import load_recipe
from optbench.run.apply import Silent
from optbench.run.make import calibration_texts, make_base, make_stage
from optbench.run.plan import Cache
from optbench.steps import PruneStructured


def main() -> None:
    """Prune, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--keep", type=float, default=0.7, help="share of the body's multiply-adds")
    parser.add_argument("--cache", type=Path, default=Path(platformdirs.user_cache_dir("optbench")))
    arguments = parser.parse_args()
    recipe, cache = load_recipe(arguments.recipe), Cache(arguments.cache.absolute())
    base = make_base(recipe, cache, "random", None, Silent()).artifact
    texts = calibration_texts(recipe)
    stage = make_stage(
        PruneStructured(keep_flops=arguments.keep, int8=True), "prune", base, recipe, cache, Silent(), calibration=texts, force=True
    )
    facts = stage.made.report.facts
    print(
        f"{recipe.name}, random weights, {facts['calibration_texts']} texts of {facts['calibration_tokens']} tokens: "
        f"{stage.made.seconds:.0f} s, peak {stage.made.peak_rss_bytes / 1e9:.2f} GB, kept {facts['kept_flops']:.3f}"
    )


if __name__ == "__main__":
    main()
