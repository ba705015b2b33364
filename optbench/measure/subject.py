"""What is measured: an artifact in an engine, optionally limited to a smaller instruction set."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter

from optbench.artifact.folder import Artifact, open_artifact
from optbench.artifact.manifest import Kind
from optbench.engines import Engine, Session
from optbench.engines.choice import choose_engine
from optbench.errors import EngineError
from optbench.machine.cpu import Isa
from optbench.machine.worker import Serving, Worker

__all__ = ["Subject"]


@dataclass(frozen=True)
class Subject:
    """An artifact in an engine, ready to be opened here or in a worker process.

    `isa` limits the engine to an instruction set. `label` names the subject in tables.
    """

    artifact: Artifact
    engine: Engine
    isa: Isa | None = None
    label: str = ""

    @classmethod
    def read(cls, folder: Path, isa: Isa | None = None, *, engine: str | None = None, label: str = "") -> Self:
        """An artifact folder in the engine that its `engine.json` names, or in `engine`: a name, or JSON with options.

        Raises:
            ArtifactError: the folder is not a complete artifact.
            EngineError: invalid engine options, or an engine that cannot open this kind of artifact.
        """
        artifact = open_artifact(folder)
        chosen = choose_engine(artifact, *_parse_engine(engine))
        chosen.check_opens(artifact)
        return cls(artifact, chosen, isa, label or folder.name)

    @property
    def refusal(self) -> str:
        """Why the engine cannot be limited to `isa`; empty if it can."""
        return self.engine.refusal(self.isa) if self.isa else ""

    @property
    def engine_options(self) -> dict[str, Any]:
        """The engine's options as JSON."""
        options: dict[str, Any] = self.engine.model_dump(mode="json")
        return options

    def _variables(self) -> dict[str, str] | None:
        return self.engine.isa_variables(self.isa) if self.isa else None

    def start(self, function: Serving, payload: Mapping[str, Any]) -> Worker:
        """Start a worker process; its function gets this subject from `Subject.received(payload)`.

        Raises:
            EngineError: the engine cannot be limited to `isa`.
        """
        described = {
            "kind": self.artifact.kind,
            "path": str(self.artifact.path),
            "sha256": self.artifact.sha256,
            "engine": self.engine_options,
        }
        return Worker(function, {**payload, "subject": described}, self._variables())

    @classmethod
    def received(cls, payload: Mapping[str, Any]) -> Self:
        """The subject that `start` sent, in the worker process, which is limited to the instruction set already."""
        described = payload["subject"]
        artifact = Artifact(Kind(described["kind"]), Path(described["path"]), described["sha256"])
        return cls(artifact, TypeAdapter(Engine).validate_python(described["engine"]))

    def open(self) -> Session:
        """Open a session in this process."""
        return self.engine.open(self.artifact)


def _parse_engine(text: str | None) -> tuple[str | None, dict[str, Any]]:
    """Split the command line's engine, a name or JSON, into the arguments of `choose_engine`."""
    import json

    if text is None or not text.lstrip().startswith("{"):
        return text, {}
    try:
        options = json.loads(text)
    except ValueError as error:
        raise EngineError(f'--engine {text}: not JSON ({error}); write it as {{"engine": "openvino", "threads": 2}}') from error
    return options.pop("engine", None), options
