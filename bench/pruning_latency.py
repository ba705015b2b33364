"""Whether a pruned body takes the milliseconds that were foreseen: predicted against measured, by token length.

    optbench apply recipes/gte-large.yaml --weights random
    optbench apply recipes/gte-large-small.yaml --weights random
    python bench/pruning_latency.py exported/gte-large-small exported/gte-large

The prediction is the one in the pruned artifact's newest record, from before the body was made; both artifacts are timed in
alternation, in many processes each, as processes of one artifact differ by up to a fifth.
"""

import argparse
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from optbench.artifact.folder import open_artifact
from optbench.encoder import choose_engine
from optbench.measure.latency import Cell, measure_latency
from optbench.record.record import newest_record


def by_length(fact: JsonValue) -> dict[int, float]:
    """A fact that says a figure by length; a record of a budget in multiply-adds has none."""
    if not isinstance(fact, dict):
        raise SystemExit("the newest record foresaw no milliseconds; apply a recipe whose prune_structured has a latency target")
    return {int(length): float(str(value)) for length, value in fact.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pruned", type=Path)
    parser.add_argument("whole", type=Path)
    parser.add_argument("--rounds", type=int, default=48)
    parser.add_argument("--processes", type=int, default=12, help="the rounds are shared out among them")
    arguments = parser.parse_args()
    record = newest_record(arguments.pruned)
    facts = next(point.report.facts for point in record.points if point.step and point.step["step"] == "prune_structured")
    foreseen_ms, foreseen_ratio = (by_length(facts.get(name)) for name in ("predicted_ms", "predicted_ratio"))
    lengths = sorted(foreseen_ms)
    artifacts = [open_artifact(path, verify=False) for path in (arguments.pruned, arguments.whole)]
    cells = [
        Cell(
            label=artifact.path.name,
            kind=artifact.kind,
            path=artifact.path,
            sha256=artifact.sha256,
            engine=choose_engine(artifact, None, {}),
        )
        for artifact in artifacts
    ]
    pruned, whole = measure_latency(cells, lengths, rounds=arguments.rounds, processes=arguments.processes)
    print("| tokens | predicted ms | measured ms | off by, % | predicted ratio | measured ratio | off by, % |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for n in lengths:
        ms, ratio = pruned.median_ms(n), whole.times_as_fast_as(pruned, n).point
        foreseen, share = foreseen_ms[n], foreseen_ratio[n]
        print(
            f"| {n} | {foreseen:.2f} | {ms:.2f} | {100 * (ms / foreseen - 1):+.1f} | {share:.3f} | {ratio:.3f} | "
            f"{100 * (ratio / share - 1):+.1f} |"
        )
    mean = np.mean([whole.times_as_fast_as(pruned, n).point for n in lengths])
    print(f"\nmean measured ratio {mean:.3f}; {facts['heads']} heads, {facts['feed_forward']} neurons, dropped {facts['dropped_layers']}")


if __name__ == "__main__":
    main()
