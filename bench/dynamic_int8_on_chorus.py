"""Is a lossy quantization caught, and a faithful one let through? ONNX Runtime's dynamic int8 on real product search.

    python bench/dynamic_int8_on_chorus.py path/to/chorus

all-MiniLM-L6-v2 with its real weights, dynamic int8 with one scale a weight (per tensor) and one a column (per channel), judged
at a loss of 1 % against fp32 in torch: with documents and queries of its own, and with its queries in the fp32 index. Exit
status 1 unless per tensor does not pass and per channel, query-side, does not fail.
"""

import argparse
from pathlib import Path

import platformdirs

from optbench.measure.accuracy import AccuracyResult
from optbench.recipe.load import load_recipe
from optbench.recipe.schema import Targets
from optbench.record.verdict import Outcome, accuracy_findings
from optbench.run.apply import Silent
from optbench.run.make import make_base, make_stage
from optbench.run.measure import NumbersGauge
from optbench.run.plan import Cache
from optbench.steps import ExportOnnx, QuantizeDynamic
from optbench.tasks import Beir

LIMIT = 0.01


def mean_share(overlap: dict[str, float] | None) -> float:
    return sum((overlap or {}).values()) / len(overlap or "1")


def judge_both(label: str, base: AccuracyResult, result: AccuracyResult) -> dict[str, Outcome]:
    """Print a line an index; the outcomes by index."""
    outcomes = {}
    for index in ("own", "fp32"):
        targets = Targets(speedup_min=1.0, accuracy_loss_max=LIMIT, index=index)
        (finding,) = accuracy_findings([base], [result], targets)
        on_index = result.on_index(index)
        change = f"{100 * finding.value:+.2f} % ({100 * finding.low:+.2f}..{100 * finding.high:+.2f})"
        print(
            f"{label:12} {index:5} {on_index.mean():.4f}  {change}"
            f"  top 10 kept {mean_share(on_index.overlap):.3f}  {finding.outcome}: {finding.reason}"
        )
        outcomes[index] = finding.outcome
    return outcomes


def main() -> None:
    """Make, measure, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("data", type=Path, help="The Chorus task as a BEIR folder.")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/minilm-l6.yaml"))
    parser.add_argument("--cache", type=Path, default=Path(platformdirs.user_cache_dir("optbench")))
    arguments = parser.parse_args()
    loaded = load_recipe(arguments.recipe)
    # What is measured here may lose much: no floor stops it.
    recipe = loaded.model_copy(update={"fidelity": loaded.fidelity.model_copy(update={"cosine_mean_min": -1.0, "cosine_min": -1.0})})
    cache = Cache(arguments.cache.absolute())
    base = make_base(recipe, cache, "real", None, Silent())
    export = make_stage(ExportOnnx(), "export", base.artifact, recipe, cache, Silent(), calibration=[], force=False)
    gauge = NumbersGauge(recipe, [Beir.from_folder(arguments.data)], cache, "real", None, Silent())
    (reference,) = gauge.measure(base).accuracy
    print(f"fp32: {reference.main_metric} {reference.mean():.4f} on {reference.task}, {reference.n_queries} queries, limit {LIMIT:.0%}")
    outcomes = {}
    for label, per_channel in (("per tensor", False), ("per channel", True)):
        step = QuantizeDynamic(per_channel=per_channel)
        stage = make_stage(step, label, export.artifact, recipe, cache, Silent(), calibration=[], force=False)
        (result,) = gauge.measure(stage).accuracy
        outcomes[label] = judge_both(label, reference, result)
    caught = Outcome.PASS not in outcomes["per tensor"].values()
    let_through = outcomes["per channel"]["fp32"] != Outcome.FAIL
    print(f"per tensor {'is not passed' if caught else 'PASSES'}; per channel, query-side, {'does not fail' if let_through else 'FAILS'}")
    if not (caught and let_through):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
