"""Predicted against measured latency of a pruned model, by token length.

    optbench apply recipes/gte-large.yaml --weights random
    optbench apply recipes/gte-large-small.yaml --weights random
    python bench/studies/pruning_latency.py exported/gte-large-small exported/gte-large

The prediction comes from the pruned artifact's newest record and was made before pruning. Both artifacts are timed in alternation, in
many processes each, because processes of one artifact differ by up to 20 %.
"""

import argparse
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from optbench.measure.latency import measure_latency
from optbench.measure.subject import Subject
from optbench.record.record import newest_record


def by_length(fact: JsonValue) -> dict[int, float]:
    """A fact with a figure for each length; a budget in multiply-adds has none."""
    if not isinstance(fact, dict):
        raise SystemExit("the newest record predicted no latency; apply a recipe whose prune_structured has a latency target")
    return {int(length): float(str(value)) for length, value in fact.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pruned", type=Path)
    parser.add_argument("whole", type=Path)
    parser.add_argument("--rounds", type=int, default=48)
    parser.add_argument("--processes", type=int, default=12, help="the rounds are divided among them")
    arguments = parser.parse_args()
    record = newest_record(arguments.pruned)
    facts = next(point.report.facts for point in record.points if point.step and point.step["step"] == "prune_structured")
    predicted_ms, predicted_ratio = (by_length(facts.get(name)) for name in ("predicted_ms", "predicted_ratio"))
    lengths = sorted(predicted_ms)
    subjects = [Subject.read(path) for path in (arguments.pruned, arguments.whole)]
    pruned, whole = measure_latency(subjects, lengths, rounds=arguments.rounds, processes=arguments.processes)
    print("| tokens | predicted ms | measured ms | off by, % | predicted ratio | measured ratio | off by, % |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for n in lengths:
        ms, ratio = pruned.median_ms(n), whole.times_as_fast_as(pruned, n).point
        predicted, share = predicted_ms[n], predicted_ratio[n]
        print(
            f"| {n} | {predicted:.2f} | {ms:.2f} | {100 * (ms / predicted - 1):+.1f} | {share:.3f} | {ratio:.3f} | "
            f"{100 * (ratio / share - 1):+.1f} |"
        )
    mean = np.mean([whole.times_as_fast_as(pruned, n).point for n in lengths])
    print(f"\nmean measured ratio {mean:.3f}; {facts['heads']} heads, {facts['feed_forward']} neurons, dropped {facts['dropped_layers']}")


if __name__ == "__main__":
    main()
