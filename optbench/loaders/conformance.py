"""Check that the code of each loader computes the artifact's own vectors.

Each library loads the same folder in a process of its own: in this Python if it can be installed beside optbench, else in a pinned
environment that is created on first use. Its vectors, and those of `optbench.load` with static lengths, are compared with the
artifact's vectors as `engines.contract` defines them, on the same runtime.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optbench.artifact.folder import Artifact, open_artifact
from optbench.artifact.manifest import Kind
from optbench.encoder import Encoder
from optbench.engines import Engine
from optbench.engines.choice import choose_engine
from optbench.errors import ArtifactError, MachineError, OptbenchError
from optbench.loaders import LOADERS
from optbench.loaders.base import ExportedModel, Loader, PythonLoader, Query, RulesLoader
from optbench.loaders.environments import clean_variables, make_environment
from optbench.machine.extras import require_extra
from optbench.machine.frozen import Frozen
from optbench.machine.progress import Progress
from optbench.model.checkpoint import describe
from optbench.tasks.retail import Retail

__all__ = ["COSINE_MIN", "LoaderRow", "Status", "check_loaders", "loader_names", "loader_texts"]

SCRIPT = Path(__file__).with_name("check.py")
# A lower cosine is more than the last bit of a float: other pooling, other precision, or no prompt.
COSINE_MIN = 0.9999
# Above this, an int8 model's activations were rounded to other integers: another kernel or precision, not another pooling.
ROUNDED_OTHERWISE_MIN = 0.995
OWN = "optbench"
QUERIES, DOCUMENTS = 12, 4
# Enough to load a body of 600M parameters and run it a hundred times on a busy machine.
TIMEOUT_S = 1200
ERROR_TAIL = 300

Vectors = dict[str, NDArray[np.float32]]


class Status(StrEnum):
    """The outcome of a check."""

    OK = "ok"
    DIFFERS = "differs"
    FAILS = "fails"
    NEEDS_FILE = "needs a file"
    CANNOT_RUN = "cannot run"


class LoaderRow(Frozen):
    """One loader on one artifact.

    Attributes:
        status: `ok`: every vector is the artifact's; `differs`: it loads, but a vector differs; `fails`: it does not load;
            `needs a file`: the folder lacks a file that it reads; `cannot run`: it is not installed.
        graph: the file that it read.
        cosine: to the artifact's vectors without a prompt, of the worst text: shows pooling and precision.
        prompted: the same with the query prompt, given the way that this library takes it.
        embed_ms: median time of one text.
        note: what is wrong, and what to do.
    """

    loader: str
    version: str | None = None
    status: Status
    graph: str | None = None
    cosine: float | None = None
    prompted: float | None = None
    normalized: bool | None = None
    load_ms: float | None = None
    embed_ms: float | None = None
    note: str = ""


def loader_names(chosen: str) -> tuple[str, ...]:
    """The names in `all` or a comma-separated list.

    Raises:
        ArtifactError: an unknown loader; lists the known ones.
    """
    known = [loader.name for loader in LOADERS]
    names = known if chosen == "all" else list(dict.fromkeys(name.strip() for name in chosen.split(",")))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ArtifactError(f"--loaders: no loader {', '.join(unknown)}; expected all, or names of {', '.join(known)}")
    return tuple(names)


def loader_texts() -> list[str]:
    """Real texts of several lengths, all short enough that no loader truncates them."""
    data = Retail().load()
    queries, documents = list(data.queries.values()), list(data.documents.values())
    return [*queries[:: max(1, len(queries) // QUERIES)][:QUERIES], *documents[:: max(1, len(documents) // DOCUMENTS)][:DOCUMENTS]]


def check_loaders(
    folder: Path, names: Sequence[str], texts: Sequence[str], environments: Path, progress: Progress
) -> tuple[LoaderRow, ...]:
    """Load an artifact in each library, and compare the vectors of `texts`, which must be short enough that no loader truncates them.

    Where `optbench.load` compiles static lengths, a row `optbench` before the loaders' says whether they give the same vectors.
    """
    checks = _Checks(folder, texts, environments, progress)
    rows = checks.check_static_lengths()
    for index, name in enumerate(names):
        progress(name, index / len(names))
        rows.append(checks.check(next(loader for loader in LOADERS if loader.name == name)))
    return tuple(rows)


class _Checks:
    """The checks of one artifact."""

    def __init__(self, folder: Path, texts: Sequence[str], environments: Path, progress: Progress) -> None:
        self._artifact = open_artifact(folder)
        self._folder, self._texts, self._environments, self._progress = folder, texts, environments, progress
        self._ours: dict[tuple[str, Kind], Vectors] = {}

    def check_static_lengths(self) -> list[LoaderRow]:
        engine = choose_engine(self._artifact, None, {})
        reference = engine.reference(self._artifact)
        if reference == engine:
            return []
        start = time.perf_counter_ns()
        with Encoder(self._artifact, engine) as encoder:
            facts: dict[str, Any] = {"version": version("optbench"), "load_ns": time.perf_counter_ns() - start, "embed_ns": []}
            served = _embed_alone(encoder, self._texts, facts["embed_ns"])
        model = _exported_model(self._artifact, engine)
        return [_row(OWN, model, served, self._reference_vectors(self._artifact, engine), facts)]

    def check(self, loader: Loader) -> LoaderRow:
        kind = next((each for each in loader.reads if (self._folder / each.main_file).is_file()), None)
        if kind is None:
            note = f"reads {loader.reads[0].main_file}; optbench extend adds it"
            return LoaderRow(loader=loader.name, status=Status.NEEDS_FILE, note=note)
        if isinstance(loader, RulesLoader):
            problems = loader.problems(self._folder)
            note = "; ".join(problems) or "the folder meets its rules for files, inputs, outputs and pooling; the server was not run"
            return LoaderRow(loader=loader.name, status=Status.FAILS if problems else Status.OK, graph=kind.main_file, note=note)
        if missing := [each for each in loader.files if not (self._folder / each).is_file()]:
            note = f"reads {', '.join(missing)}; save the base's tokenizer with transformers' save_pretrained and apply the recipe to that"
            return LoaderRow(loader=loader.name, status=Status.NEEDS_FILE, note=note)
        try:
            python = self._interpreter(loader)
        except MachineError as error:
            return LoaderRow(loader=loader.name, status=Status.CANNOT_RUN, note=str(error))
        try:
            return self._compare(loader, kind, python)
        except OptbenchError as error:
            return LoaderRow(loader=loader.name, status=Status.FAILS, graph=kind.main_file, note=str(error))

    def _interpreter(self, loader: PythonLoader) -> Path:
        if loader.environment is not None:
            return make_environment(loader.environment, self._environments, self._progress)
        if loader.extra is not None:
            require_extra(loader.extra, loader.title)
        return Path(sys.executable)

    def _compare(self, loader: PythonLoader, kind: Kind, python: Path) -> LoaderRow:
        artifact = Artifact(kind, self._artifact.path, self._artifact.sha256, self._artifact.weights)
        # The engine that the artifact was measured in, if it is on the loader's runtime.
        engine = choose_engine(artifact, None, {})
        if engine.engine != loader.runtime:
            engine = choose_engine(artifact, loader.runtime, {})
        model = _exported_model(artifact, engine)
        theirs, facts = _run(loader, model, self._texts, python)
        return _row(loader.name, model, theirs, self._reference_vectors(artifact, engine), facts)

    def _reference_vectors(self, artifact: Artifact, engine: Engine) -> Vectors:
        """The artifact's vectors by definition, computed once per runtime and format."""
        key = (engine.engine, artifact.kind)
        if key not in self._ours:
            with Encoder(artifact, engine.reference(artifact)) as encoder:
                self._ours[key] = _embed_alone(encoder, self._texts, [])
        return self._ours[key]


def _embed_alone(encoder: Encoder, texts: Sequence[str], embed_ns: list[int]) -> Vectors:
    """Embed each text alone, without and with the query prompt; appends the nanoseconds of each to `embed_ns`."""
    rows: dict[str, list[NDArray[np.float32]]] = {"plain": [], "prompted": []}
    for which, prompt in (("plain", ""), ("prompted", "query")):
        for text in texts:
            start = time.perf_counter_ns()
            rows[which].append(encoder.encode(text, prompt))
            embed_ns.append(time.perf_counter_ns() - start)
    return {which: np.stack(vectors) for which, vectors in rows.items()}


def _exported_model(artifact: Artifact, engine: Engine) -> ExportedModel:
    description = describe(artifact.path)
    return ExportedModel(
        name="artifact",
        folder=str(artifact.path.absolute()),
        kind=artifact.kind,
        prompt=description.prompts.query,
        pooling=description.pooling,
        normalize=description.normalize,
        dimension=description.body.hidden,
        max_tokens=description.max_tokens,
        precision=getattr(engine, "inference_precision", "f32"),
        truncate_dim=description.dimension,
        default_prompt=description.default_prompt is not None,
    )


def _run(loader: PythonLoader, model: ExportedModel, texts: Sequence[str], python: Path) -> tuple[Vectors, dict[str, Any]]:
    """Run a loader's code in its own interpreter: its vectors, its version and its times."""
    plain, prompted = Query("text", "text", has_prompt=False), Query("text", f"{model.prompt!r} + text", has_prompt=bool(model.prompt))
    request = {
        "distribution": loader.distribution,
        "load": "\n".join(loader.load(model)),
        "plain": "\n".join(loader.embed(model, plain)),
        "prompted": "\n".join(loader.embed(model, prompted)),
        "texts": list(texts),
    }
    with tempfile.TemporaryDirectory(prefix="optbench-loader-") as scratch:
        asked, answered = Path(scratch, "request.json"), Path(scratch, "answer.npz")
        asked.write_text(json.dumps(request), encoding="utf-8")
        # Offline: a loader that does not find its files must fail rather than download others.
        variables = {**clean_variables(), "HF_HUB_OFFLINE": "1", "HF_HOME": scratch, "TOKENIZERS_PARALLELISM": "false"}
        try:
            # -P: this folder holds modules named like the libraries.
            done = subprocess.run(
                [python, "-P", SCRIPT, asked, answered],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                env=variables,
                cwd=scratch,
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired as error:
            raise ArtifactError(f"took more than {TIMEOUT_S} s") from error
        if not answered.is_file():
            last = ([line for line in done.stderr.splitlines() if line.strip()] or [f"ended with status {done.returncode}"])[-1]
            raise ArtifactError(last[-ERROR_TAIL:])
        with np.load(answered, allow_pickle=False) as answer:
            return {which: answer[which] for which in ("plain", "prompted")}, json.loads(str(answer["facts"]))


def _row(name: str, model: ExportedModel, theirs: Vectors, ours: Vectors, facts: dict[str, Any]) -> LoaderRow:
    cosines = {which: _worst_cosine(theirs[which], ours[which]) for which in ours}
    lengths = np.linalg.norm(theirs["plain"].astype(np.float64), axis=1)
    normalized = bool(np.allclose(lengths, 1, atol=1e-3))
    notes = []
    if cosines["plain"] < COSINE_MIN:
        rounded = cosines["plain"] >= ROUNDED_OTHERWISE_MIN
        notes.append(
            "its vectors differ from the artifact's: "
            + ("it rounds otherwise, or other precision" if rounded else "other pooling or precision")
        )
    elif cosines["prompted"] < COSINE_MIN:
        notes.append("its vectors differ from the artifact's with the query prompt: it does not prepend the model's prompt")
    if model.normalize and not normalized and model.truncate_dim is None:
        notes.append("its vectors are not normalized")
    return LoaderRow(
        loader=name,
        version=facts["version"],
        status=Status.DIFFERS if notes else Status.OK,
        graph=model.kind.main_file,
        cosine=cosines["plain"],
        prompted=cosines["prompted"],
        normalized=normalized,
        load_ms=facts["load_ns"] / 1e6,
        embed_ms=median(facts["embed_ns"]) / 1e6,
        note="; ".join(notes),
    )


def _worst_cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    a, b = one.astype(np.float64), other.astype(np.float64)
    return float((np.sum(a * b, axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).min())
