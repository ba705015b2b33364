"""Does a verdict reject a lossy quantization and accept a faithful one? ONNX Runtime's dynamic int8 on real product search.

    python bench/studies/dynamic_int8_on_chorus.py path/to/chorus

all-MiniLM-L6-v2 with its real weights in dynamic int8, with one scale per weight matrix (per tensor) or per column (per channel),
against torch fp32 with at most 1 % loss allowed. Both sides: it embeds queries and documents. Query-side: its queries search the fp32
index. Exits with 1 unless per tensor does not pass and per channel, query-side, does not fail.
"""

import argparse
from pathlib import Path

import platformdirs

from optbench.measure.accuracy import AccuracyResult
from optbench.recipe.load import load_recipe
from optbench.recipe.schema import Targets
from optbench.record.verdict import Outcome, accuracy_findings
from optbench.run.cache import Cache
from optbench.run.evaluate import StageEvaluator
from optbench.run.listener import Silent
from optbench.run.make import make_stages
from optbench.run.plan import Options, Run, Stage
from optbench.steps.export_onnx import ExportOnnx
from optbench.steps.quantize_dynamic import QuantizeDynamic
from optbench.tasks.beir import Beir

LIMIT = 0.01


def mean_share(overlap: dict[str, float] | None) -> float:
    return sum((overlap or {}).values()) / len(overlap or "1")


def judge_both(label: str, base: AccuracyResult, result: AccuracyResult) -> dict[str, Outcome]:
    """Print one line per index; return the outcomes by index."""
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
    # No fidelity limit: a large loss is expected here.
    recipe = loaded.model_copy(update={"fidelity": loaded.fidelity.model_copy(update={"cosine_mean_min": -1.0, "cosine_min": -1.0})})
    cache = Cache(arguments.cache.absolute())
    recipe = recipe.model_copy(update={"tasks": (Beir(path=arguments.data, text="title", ranking="judged", gain="exponential"),)})

    def stages(step: QuantizeDynamic) -> list[Stage]:
        return make_stages(Run(recipe.model_copy(update={"steps": (ExportOnnx(), step)}), Options(cache=cache)), Silent())

    evaluator = StageEvaluator(Run(recipe, Options(cache=cache)), Silent())
    (reference,) = evaluator.evaluate(stages(QuantizeDynamic())[0]).accuracy
    print(f"fp32: {reference.main_metric} {reference.mean():.4f} on {reference.task}, {reference.n_queries} queries, limit {LIMIT:.0%}")
    outcomes = {}
    for label, per_channel in (("per tensor", False), ("per channel", True)):
        (result,) = evaluator.evaluate(stages(QuantizeDynamic(per_channel=per_channel))[-1]).accuracy
        outcomes[label] = judge_both(label, reference, result)
    caught = Outcome.PASS not in outcomes["per tensor"].values()
    let_through = outcomes["per channel"]["fp32"] != Outcome.FAIL
    print(f"per tensor {'is not passed' if caught else 'PASSES'}; per channel, query-side, {'does not fail' if let_through else 'FAILS'}")
    if not (caught and let_through):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
