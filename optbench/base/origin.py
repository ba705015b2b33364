"""Where a base came from, as every artifact made from it records."""

from pathlib import Path

from optbench.artifact.manifest import Weights
from optbench.errors import BaseModelError
from optbench.machine.frozen import Frozen
from optbench.model.checkpoint import read_json

__all__ = ["ORIGIN", "Origin", "read_origin"]

ORIGIN = "base.json"


class Origin(Frozen):
    """The content of `base.json`, which later artifacts carry along.

    Attributes:
        source: `hub:ORG/NAME`, `package:NAME`, `path:` and the folder's own name, or `random`.
        revision: the hub's commit, or the package's version.
        warnings: for the record.
    """

    source: str
    revision: str | None
    license: str
    weights: Weights
    warnings: tuple[str, ...]


def read_origin(folder: Path) -> Origin:
    """The origin that an artifact carries.

    Raises:
        BaseModelError: no `base.json`, or a broken one.
    """
    try:
        return Origin.model_validate(read_json(folder / ORIGIN))
    except ValueError as error:
        raise BaseModelError(f"{folder / ORIGIN}: {error}; obtain the base again") from error
