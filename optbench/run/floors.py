"""The latency floor of recipes on this machine, beside what their newest records measured here."""

from collections.abc import Sequence
from pathlib import Path

from optbench.machine.cpu import Machine
from optbench.machine.floor import Peaks, floor_ms
from optbench.machine.frozen import Frozen
from optbench.recipe.schema import Recipe
from optbench.record.record import newest_record

__all__ = ["RecipeFloor", "floors_of_recipes"]


class RecipeFloor(Frozen):
    """What no program on this machine can beat for a recipe's body, and how near its artifact comes.

    Attributes:
        floors_ms: by weight format and token length.
        measured_ms: the newest record's final median by token length; empty without a record of this machine.
        measured: that record's final stage and date.
    """

    recipe: str
    floors_ms: dict[str, dict[int, float]]
    measured_ms: dict[int, float]
    measured: str


def floors_of_recipes(recipes: Sequence[Recipe], peaks: Peaks, machine: Machine, output: Path) -> list[RecipeFloor]:
    """The floors of recipes on this machine, beside what their newest records measured here."""
    found = []
    for recipe in recipes:
        lengths, batch, body = sorted(recipe.workload.lengths), recipe.workload.batch, recipe.base.body
        floors = {
            weights: {length: floor_ms(body.multiply_adds(length, batch), body.weights, weights, peaks).ms for length in lengths}
            for weights in ("fp32", "int8", "int4")
        }
        measured_ms: dict[int, float] = {}
        measured = ""
        folder = output / recipe.name
        if (folder / "records").is_dir():
            record = newest_record(folder)
            if record.machine.fingerprint == machine.fingerprint and record.isa is None and record.final.timing is not None:
                timing = record.timing(record.final.timing)
                measured_ms = {length: timing.median_ms(length) for length in timing.samples_ns}
                measured = f"{record.final.label}, {record.created}"
        found.append(RecipeFloor(recipe=recipe.name, floors_ms=floors, measured_ms=measured_ms, measured=measured))
    return found
