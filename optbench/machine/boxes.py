"""Reference boxes: the machines that a recipe's milliseconds refer to, one YAML file each in bench/boxes."""

import re
from pathlib import Path

from pydantic import Field, ValidationError, field_validator

from optbench.errors import MachineError
from optbench.machine.cpu import Isa, Machine
from optbench.machine.frozen import Frozen

__all__ = ["Box", "Limits", "box_name", "load_boxes", "matching_box", "write_box"]

# In a wheel the files lie inside the package, in a checkout in bench/.
FOLDERS = (Path(__file__).parents[1] / "boxes", Path(__file__).parents[2] / "bench" / "boxes")

NAME = "[a-z0-9][a-z0-9._-]{0,63}"


class Limits(Frozen):
    """A recipe's published latencies on a box, batch 1, in milliseconds."""

    baseline_ms: float = Field(gt=0)
    latency_ms: float = Field(gt=0)


class Box(Frozen):
    """A reference machine.

    Attributes:
        cpu: regular expression, matched anywhere in the CPU's model name.
        cores: physical cores, at least.
        isa: its largest instruction set.
        governor: of cpufreq during its measurements; this and the next three are None where unknown.
        limits: by recipe.
    """

    name: str = Field(pattern=f"^{NAME}$")
    cpu: str = Field(min_length=1)
    cores: int = Field(ge=1)
    isa: Isa
    governor: str | None = None
    turbo: bool | None = None
    memory_gb: float | None = Field(default=None, gt=0)
    system: str | None = None
    limits: dict[str, Limits] = Field(default_factory=dict)

    @field_validator("cpu")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return value

    def matches(self, machine: Machine) -> bool:
        """Whether a machine is this box, by CPU name, instruction set (a hypervisor may hide some) and cores."""
        return re.search(self.cpu, machine.cpu) is not None and machine.isa == self.isa and machine.cores >= self.cores


def load_boxes(folder: Path | None = None) -> tuple[Box, ...]:
    """All boxes of a folder; default: those that optbench ships.

    Raises:
        MachineError: a file is broken, or the folder is missing; says which and where.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    home = folder or next((each for each in FOLDERS if each.is_dir()), FOLDERS[0])
    if not home.is_dir():
        raise MachineError(f"{home}: no such folder; it holds the reference boxes: reinstall optbench")
    boxes: list[Box] = []
    for path in sorted(home.glob("*.yaml")):
        try:
            box = Box.model_validate(YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")))
        except ValidationError as error:
            first = error.errors()[0]
            raise MachineError(f"{path}: {'.'.join(map(str, first['loc'])) or 'top'}: {first['msg']}; correct it") from error
        except (OSError, UnicodeDecodeError, YAMLError) as error:
            raise MachineError(f"{path}: cannot be read as YAML: {error}; correct it") from error
        if box.name != path.stem:
            raise MachineError(f"{path}: name: {box.name} found, {path.stem} expected, like the file; rename one of them")
        boxes.append(box)
    return tuple(boxes)


def write_box(box: Box, folder: Path | None = None) -> Path:
    """Write a box's file, which recipes can then name; by default in bench/boxes of the checkout that this optbench runs from.

    Raises:
        MachineError: a box of that name exists, which is never overwritten; there is no checkout; or the file cannot be written.
    """
    from ruamel.yaml import YAML

    home = folder or FOLDERS[1]
    if not home.is_dir():
        raise MachineError(f"{home}: no such folder; boxes are added in a checkout of optbench: run it from there")
    path = home / f"{box.name}.yaml"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write("# Written by optbench probe --write-box. limits takes {baseline_ms: ..., latency_ms: ...} by recipe.\n")
            YAML().dump(box.model_dump(exclude_none=True), file)
    except FileExistsError:
        raise MachineError(f"{path}: exists and is not overwritten; choose another name, or move the file away") from None
    except OSError as error:
        raise MachineError(f"{path}: cannot be written: {error.strerror}; make {home} writable") from error
    return path


def box_name(text: str) -> str:
    """Check that a box name is safe as a file name.

    Raises:
        MachineError: it is not.
    """
    if re.fullmatch(NAME, text) is None:
        raise MachineError(f"box name {text!r}: expected lower-case letters, digits, dots, - and _, starting with a letter or a digit")
    return text


def matching_box(machine: Machine) -> Box | None:
    """The box that a machine matches, if any."""
    return next((box for box in load_boxes() if box.matches(machine)), None)
