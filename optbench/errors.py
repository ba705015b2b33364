"""Every error optbench raises on purpose.

    OptbenchError
    ├── RecipeError       a recipe that cannot be read or run: file, line, key and cure
    ├── BaseModelError    a base model that cannot be had, or that contradicts its recipe
    ├── ArtifactError     a folder that is truncated, tampered with, or not what it says
    ├── StepError         a step that refused its input, matched too little, or broke the model
    ├── EngineError       an engine that cannot open or run an artifact
    ├── TaskError         an accuracy task that cannot be read
    ├── MeasureError      a measurement that could not be taken, or compared
    ├── RecordError       a record that is broken or not comparable
    ├── PublishError      an artifact that may not be published, or a destination that cannot be reached
    └── MachineError      this machine lacks something: disk, memory, a lock held by another run
        └── MissingExtraError  a library that only one of optbench's extras installs

The command line prints an `OptbenchError` as one line. Any other exception is a bug: one line, and its traceback in a file.
"""

__all__ = [
    "ArtifactError",
    "BaseModelError",
    "EngineError",
    "MachineError",
    "MeasureError",
    "MissingExtraError",
    "OptbenchError",
    "PublishError",
    "RecipeError",
    "RecordError",
    "StepError",
    "TaskError",
]


class OptbenchError(Exception):
    """What went wrong, where, what was expected, and what to do: the message is written for the user."""


class RecipeError(OptbenchError):
    """A recipe that cannot be read or run."""


class BaseModelError(OptbenchError):
    """A base model that cannot be had, or that contradicts its recipe."""


class ArtifactError(OptbenchError):
    """A folder that is truncated, tampered with, or not what it says it is."""


class StepError(OptbenchError):
    """A step that refused its input, matched fewer places than expected, or broke the model."""


class EngineError(OptbenchError):
    """An engine that cannot open or run an artifact."""


class TaskError(OptbenchError):
    """An accuracy task that cannot be read."""


class MeasureError(OptbenchError):
    """A measurement that could not be taken, or compared."""


class RecordError(OptbenchError):
    """A record that is broken, or not comparable with another."""


class MachineError(OptbenchError):
    """This machine lacks what the work needs: disk, memory, a free lock."""


class MissingExtraError(MachineError):
    """A library that only one of optbench's extras installs; the message names the extra."""


class PublishError(OptbenchError):
    """An artifact that may not be published, or a destination that cannot be reached or does not hold what it says."""
