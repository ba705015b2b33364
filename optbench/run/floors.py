"""The latency floor of recipes on this machine, beside what their newest records measured here."""

from collections.abc import Sequence
from pathlib import Path

from optbench.machine.cpu import Machine
from optbench.machine.floor import WeightFormat
from optbench.machine.frozen import Frozen
from optbench.machine.peaks import Peaks
from optbench.recipe.schema import Recipe
from optbench.record.record import newest_record

__all__ = ["RecipeFloor", "floors_of_recipes"]

FORMATS_SHOWN: tuple[WeightFormat, ...] = ("fp32", "int8", "int4")


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
        floors = {weights: dict(sorted(recipe.floors_ms(peaks, weights).items())) for weights in FORMATS_SHOWN}
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
