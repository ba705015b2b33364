"""Which engine opens an artifact: the caller's, that of the folder's engine.json, or the native one of its kind."""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from optbench.artifact.folder import Artifact
from optbench.engines import ENGINES, Engine, default_engine
from optbench.errors import ArtifactError, BaseModelError, EngineError
from optbench.model.checkpoint import read_json

__all__ = ["ENGINE_FILE", "choose_engine"]

ENGINE_FILE = "engine.json"
"""The file beside the weights with the engine options that the artifact was measured with: an `Engine` as JSON."""

_ENGINE: TypeAdapter[Engine] = TypeAdapter(Engine)


def choose_engine(artifact: Artifact, engine: Engine | str | None, options: Mapping[str, Any]) -> Engine:
    """The engine that opens an artifact.

    Args:
        artifact: where `engine` is None, its engine.json names the engine; without that file, it is the native one of its kind.
        engine: an engine, or its name.
        options: override options of the engine.

    Raises:
        EngineError: no such engine or option; blames the argument, or engine.json.
    """
    file = artifact.path / ENGINE_FILE
    chosen: Engine
    if isinstance(engine, str):
        chosen = _validated({"engine": engine}, f"engine {engine}")
    elif engine is not None:
        chosen = engine
    elif file.is_file():
        try:
            chosen = _validated(read_json(file), str(file))
        except BaseModelError as error:
            raise ArtifactError(str(error)) from error
    else:
        chosen = default_engine(artifact.kind)
    return _validated({**chosen.model_dump(), **options}, "engine options") if options else chosen


def _validated(document: Any, where: str) -> Engine:
    try:
        return _ENGINE.validate_python(document)
    except ValidationError as error:
        raise EngineError(f"{where}: {_describe(error, document)}") from error


def _describe(error: ValidationError, document: Any) -> str:
    """The first of pydantic's errors; for an unknown option, the options that the engine has."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    selected = ENGINES.selected(document)
    if selected is None:
        return str(first["msg"])
    if first["type"] == "extra_forbidden":
        known = ", ".join(name for name in selected.model_fields if name != "engine")
        return f"{document['engine']} has no option {place[-1]}; it has {known}"
    return f"{' '.join(place)} is {first['input']!r}: {first['msg']}"
