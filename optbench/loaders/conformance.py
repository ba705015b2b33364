"""Does every library that people load embeddings with give the artifact's own vectors?

Each loads the same folder in a process of its own, in this Python where it can be installed beside optbench, else in a pinned
environment that is made on first use. What it embeds is compared with what `optbench.load` embeds in the same runtime.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optbench.artifact.folder import Artifact, Kind, open_artifact
from optbench.encoder import Encoder, choose_engine
from optbench.errors import ArtifactError, MachineError, OptbenchError
from optbench.loaders.environments import ST5_ONNX, ST6_OPENVINO, PinnedEnvironment, clean_variables, make_environment
from optbench.loaders.layout import layout_problems
from optbench.machine.frozen import Frozen
from optbench.machine.progress import Progress
from optbench.model.checkpoint import describe
from optbench.report.table import Table
from optbench.tasks import Retail

__all__ = ["COSINE_MIN", "LOADERS", "LoaderRow", "Status", "check_loaders", "loader_names", "loader_table", "loader_texts"]

PROBE = Path(__file__).with_name("probe.py")
# Below, something else than rounding is at work: another pooling, another precision, no prompt.
COSINE_MIN = 0.9999
# A body of 600M parameters is loaded and run a hundred times within it, on a busy machine too.
QUERIES, DOCUMENTS = 12, 4
TIMEOUT_S = 1200
ERROR_TAIL = 300


class Status(StrEnum):
    """What became of a loader."""

    OK = "ok"
    DIFFERS = "differs"
    FAILS = "fails"
    NEEDS_FILE = "needs a file"
    CANNOT_RUN = "cannot run"


class LoaderRow(Frozen):
    """One loader on one artifact.

    Attributes:
        loader: its name, as `--loaders` takes it.
        version: of its library.
        status: `ok`: loads, and every vector is ours; `differs`: loads, and they are not; `fails`: does not load; `needs a file`:
            the folder lacks the graph it reads; `cannot run`: it is not installed.
        graph: the file that it read.
        cosine: to our own vectors, the worst text, without prompt: pooling and precision.
        prompted: the same with the query prompt, put there the way that this library has.
        normalized: whether its vectors have length 1 where the model's do.
        load_ms: to load.
        embed_ms: median of one text.
        note: why not, and what to do.
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


@dataclass(frozen=True)
class _Loader:
    """How one is run.

    Attributes:
        probe: its name in probe.py; None where rules are checked and nothing is run.
        reads: formats, the preferred first.
        runtime: the engine of ours that its vectors are compared with.
        module: what must be importable here, where it has no environment.
        install: what brings that.
        environment: where it runs, if not here.
        files: what else it reads, beside what every artifact has.
    """

    probe: str | None
    reads: tuple[Kind, ...]
    runtime: str
    module: str = ""
    install: str = ""
    environment: PinnedEnvironment | None = None
    files: tuple[str, ...] = ()


LOADERS: dict[str, _Loader] = {
    "sentence-transformers-openvino": _Loader("sentence-transformers", (Kind.OPENVINO,), "openvino", environment=ST6_OPENVINO),
    "sentence-transformers-onnx": _Loader("sentence-transformers", (Kind.ONNX,), "onnxruntime", environment=ST5_ONNX),
    "optimum-intel": _Loader("optimum-intel", (Kind.OPENVINO, Kind.ONNX), "openvino", environment=ST6_OPENVINO),
    "onnxruntime": _Loader("onnxruntime", (Kind.ONNX,), "onnxruntime", "onnxruntime", "optbench"),
    "openvino": _Loader("openvino", (Kind.OPENVINO, Kind.ONNX), "openvino", "openvino", "optbench"),
    "fastembed": _Loader("fastembed", (Kind.ONNX,), "onnxruntime", "fastembed", "optbench[loaders]", files=("tokenizer_config.json",)),
    "text-embeddings-inference": _Loader(None, (Kind.ONNX,), "onnxruntime"),
}


def loader_names(chosen: str) -> tuple[str, ...]:
    """The names in `all` or a comma-separated list.

    Raises:
        ArtifactError: no such loader; those that there are are listed.
    """
    names = tuple(LOADERS) if chosen == "all" else tuple(dict.fromkeys(name.strip() for name in chosen.split(",")))
    unknown = [name for name in names if name not in LOADERS]
    if unknown:
        raise ArtifactError(f"--loaders: no loader {', '.join(unknown)}; there are {', '.join(LOADERS)}, or all")
    return names


def loader_texts() -> list[str]:
    """Real texts of several lengths, none so long that a loader cuts it."""
    data = Retail().load()
    queries, documents = list(data.queries.values()), list(data.documents.values())
    return [*queries[:: max(1, len(queries) // QUERIES)][:QUERIES], *documents[:: max(1, len(documents) // DOCUMENTS)][:DOCUMENTS]]


def loader_table(rows: Sequence[LoaderRow]) -> Table | None:
    """One row a loader; None for none."""
    if not rows:
        return None
    cells = [
        [
            row.loader,
            row.version or "",
            str(row.status),
            "" if row.cosine is None else f"{row.cosine:.6f}",
            "" if row.prompted is None else f"{row.prompted:.6f}",
            "" if row.load_ms is None else f"{row.load_ms:.0f}",
            "" if row.embed_ms is None else f"{row.embed_ms:.1f}",
            row.note,
        ]
        for row in rows
    ]
    note = (
        f"cosine to optbench's own vectors, the worst text, without and with the query prompt; {COSINE_MIN} is wanted. "
        "ms: not measured with care, see optbench measure for that."
    )
    return Table("Loaders", ["loader", "version", "status", "cosine", "prompted", "load ms", "text ms", "note"], cells, note)


def check_loaders(
    folder: Path, names: Sequence[str], texts: Sequence[str], environments: Path, progress: Progress
) -> tuple[LoaderRow, ...]:
    """Load a folder in each library, and compare vectors.

    Args:
        folder: an artifact.
        names: of LOADERS.
        texts: at least one; short enough that no loader cuts them.
        environments: where pinned environments lie or are made.
        progress: told which loader runs.
    """
    artifact = open_artifact(folder)
    ours: dict[tuple[str, Kind], dict[str, NDArray[np.float32]]] = {}
    rows = []
    for index, name in enumerate(names):
        progress(name, index / len(names))
        loader = LOADERS[name]
        kind = next((each for each in loader.reads if (folder / each.main_file).is_file()), None)
        if kind is None:
            wanted = loader.reads[0].main_file
            rows.append(LoaderRow(loader=name, status=Status.NEEDS_FILE, note=f"reads {wanted}; optbench extend puts it beside"))
            continue
        if missing := [each for each in loader.files if not (folder / each).is_file()]:
            note = f"reads {', '.join(missing)}; save the base's tokenizer with transformers' save_pretrained, and apply the recipe to that"
            rows.append(LoaderRow(loader=name, status=Status.NEEDS_FILE, note=note))
            continue
        try:
            if loader.probe is None:
                rows.append(_check_layout(name, folder))
                continue
            python = _interpreter(loader, environments, progress)
        except MachineError as error:
            rows.append(LoaderRow(loader=name, status=Status.CANNOT_RUN, note=str(error)))
            continue
        key = (loader.runtime, kind)
        try:
            if key not in ours:
                ours[key] = _own_vectors(artifact, kind, loader.runtime, texts)
            rows.append(_run(name, loader, python, artifact, kind, texts, ours[key]))
        except OptbenchError as error:
            rows.append(LoaderRow(loader=name, status=Status.FAILS, graph=kind.main_file, note=str(error)))
    return tuple(rows)


def _check_layout(name: str, folder: Path) -> LoaderRow:
    problems = layout_problems(folder)
    note = "; ".join(problems) or "its rules for files, inputs, outputs and pooling are met; the server itself is not run"
    return LoaderRow(loader=name, status=Status.FAILS if problems else Status.OK, graph=Kind.ONNX.main_file, note=note)


def _interpreter(loader: _Loader, environments: Path, progress: Progress) -> Path:
    if loader.environment is not None:
        return make_environment(loader.environment, environments, progress)
    if find_spec(loader.module) is None:
        raise MachineError(f"{loader.module} is not installed; pip install '{loader.install}'")
    return Path(sys.executable)


def _engine(artifact: Artifact, kind: Kind, runtime: str) -> tuple[Artifact, Any]:
    """The folder as an artifact of that kind, and the engine that it was measured in, if it is of that runtime."""
    seen = Artifact(kind, artifact.path, artifact.sha256, artifact.weights)
    engine = choose_engine(seen, None, {})
    return seen, engine if engine.engine == runtime else choose_engine(seen, runtime, {})


def _own_vectors(artifact: Artifact, kind: Kind, runtime: str, texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    seen, engine = _engine(artifact, kind, runtime)
    with Encoder(seen, engine) as encoder:
        return {
            which: np.stack([encoder.encode(text, prompt) for text in texts]) for which, prompt in (("plain", None), ("prompted", "query"))
        }


def _run(
    name: str, loader: _Loader, python: Path, artifact: Artifact, kind: Kind, texts: Sequence[str], ours: dict[str, NDArray[np.float32]]
) -> LoaderRow:
    description = describe(artifact.path)
    _, engine = _engine(artifact, kind, loader.runtime)
    request = {
        "loader": loader.probe,
        "backend": "openvino" if loader.runtime == "openvino" else "onnx",
        "format": str(kind),
        "folder": str(artifact.path.absolute()),
        "texts": list(texts),
        "prompt_name": "query",
        "prompt": description.prompts.query,
        "pooling": description.pooling,
        "normalize": description.normalize,
        "dimension": description.body.hidden,
        "max_tokens": description.max_tokens,
        # What an IR cannot carry: without it OpenVINO computes in bf16 where the CPU can.
        "ov_config": {"INFERENCE_PRECISION_HINT": getattr(engine, "inference_precision", None) or "f32"},
    }
    with tempfile.TemporaryDirectory(prefix="optbench-loader-") as scratch:
        asked, answered = Path(scratch, "request.json"), Path(scratch, "answer.npz")
        asked.write_text(json.dumps(request), encoding="utf-8")
        # Offline: a loader that finds its files asks no hub, and one that does not must say so.
        variables = {**clean_variables(), "HF_HUB_OFFLINE": "1", "HF_HOME": scratch, "TOKENIZERS_PARALLELISM": "false"}
        try:
            done = subprocess.run(
                [python, "-P", PROBE, asked, answered],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                env=variables,
                cwd=scratch,
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            return LoaderRow(loader=name, status=Status.FAILS, graph=kind.main_file, note=f"took more than {TIMEOUT_S} s")
        if not answered.is_file():
            last = ([line for line in done.stderr.splitlines() if line.strip()] or [f"ended with status {done.returncode}"])[-1]
            return LoaderRow(loader=name, status=Status.FAILS, graph=kind.main_file, note=last[-ERROR_TAIL:])
        with np.load(answered, allow_pickle=False) as answer:
            theirs = {which: answer[which] for which in ours}
            facts = json.loads(str(answer["facts"]))
    return _compare(name, kind, theirs, ours, facts, normalize=description.normalize)


def _compare(
    name: str,
    kind: Kind,
    theirs: dict[str, NDArray[np.float32]],
    ours: dict[str, NDArray[np.float32]],
    facts: dict[str, Any],
    *,
    normalize: bool,
) -> LoaderRow:
    cosines = {which: _worst_cosine(theirs[which], ours[which]) for which in ours}
    lengths = np.linalg.norm(theirs["plain"].astype(np.float64), axis=1)
    normalized = bool(np.allclose(lengths, 1, atol=1e-3))
    notes = []
    if cosines["plain"] < COSINE_MIN:
        notes.append("other vectors than ours: another pooling or precision")
    elif cosines["prompted"] < COSINE_MIN:
        notes.append("other vectors with the query prompt: it is not put in front as the model says")
    if normalize and not normalized:
        notes.append("its vectors are not normalized")
    return LoaderRow(
        loader=name,
        version=facts["version"],
        status=Status.DIFFERS if notes else Status.OK,
        graph=kind.main_file,
        cosine=cosines["plain"],
        prompted=cosines["prompted"],
        normalized=normalized,
        load_ms=facts["load_ns"] / 1e6,
        embed_ms=median(facts["took_ns"]) / 1e6,
        note="; ".join(notes),
    )


def _worst_cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    a, b = one.astype(np.float64), other.astype(np.float64)
    return float((np.sum(a * b, axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).min())
