"""A step, an engine, a task, a destination and a loader are each a file and an entry in a registry: this adds one of each to a copy."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from optbench.artifact.folder import Artifact
from optbench.artifact.manifest import Kind

ROOT = Path(__file__).parent.parent
# By room: the new file's name, what the registry imports from it if anything, its entry, and the text that the entry follows.
ADDITIONS = {
    "steps": ("copy_onnx", "", '"copy_onnx": "CopyOnnx", ', 'STEPS = Registry[BaseStep](\n    "step",\n    __name__,\n    {'),
    "engines": ("plain", "", '"plain": "Plain", ', 'ENGINES = Registry[BaseEngine]("engine", __name__, {'),
    "tasks": ("colors", "", '"colors": "Colors", ', 'TASKS = Registry[BaseTask]("task", __name__, {'),
    "publish": ("shelf", "Shelf", '"shelf": Shelf, ', "DESTINATIONS: dict[str, Callable[[str], Destination]] = {"),
    "loaders": ("plain", "PLAIN", "PLAIN, ", "LOADERS: tuple[Loader, ...] = ("),
}
SOURCES = {
    "steps": '''
from pathlib import Path
from typing import ClassVar, Literal

from optbench.artifact.folder import Artifact, copy_companions
from optbench.artifact.manifest import Kind
from optbench.steps.base import BaseStep, StepContext, StepReport


class CopyOnnx(BaseStep):
    """Copy the graph unchanged."""

    takes: ClassVar[frozenset[Kind]] = frozenset({Kind.ONNX})
    gives: ClassVar[Kind] = Kind.ONNX
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ()
    step: Literal["copy_onnx"] = "copy_onnx"

    def run(self, source: Artifact, out: Path, context: StepContext) -> StepReport:
        copy_companions(source.path, out)
        graph = out / Kind.ONNX.main_file
        graph.parent.mkdir(exist_ok=True)
        graph.write_bytes(source.main_file.read_bytes())
        return StepReport()
''',
    "engines": '''
from typing import Any, ClassVar, Literal

from optbench.artifact.folder import Artifact
from optbench.artifact.manifest import Kind
from optbench.engines.base import BaseEngine, Session


class Plain(BaseEngine):
    """onnxruntime with its defaults."""

    opens: ClassVar[frozenset[Kind]] = frozenset({Kind.ONNX})
    engine: Literal["plain"] = "plain"

    @property
    def precision(self) -> str:
        return "fp32"

    def isa_variables(self, isa: Any) -> dict[str, str]:
        return {}

    def open(self, artifact: Artifact) -> Session:
        import onnxruntime

        return PlainSession(onnxruntime.InferenceSession(artifact.main_file))


class PlainSession(Session):
    def __init__(self, session: Any) -> None:
        self.session = session

    def embed(self, input_ids: Any, attention_mask: Any) -> Any:
        return self.session.run(["sentence_embedding"], {"input_ids": input_ids, "attention_mask": attention_mask})[0]

    def close(self) -> None:
        self.session = None
''',
    "tasks": '''
from typing import Literal

from optbench.tasks.base import BaseTask, CalibrationTexts, RetrievalData

COLORS = [f"{shade} {color}" for shade in ("dark", "light", "pale") for color in ("red", "green", "blue", "black", "white", "pink")]


class Colors(BaseTask):
    """Find each color by its own name."""

    task: Literal["colors"] = "colors"

    @property
    def name(self) -> str:
        return "colors"

    def load(self) -> RetrievalData:
        documents = {str(number): color for number, color in enumerate(COLORS)}
        return RetrievalData(self.name, "en", documents, documents, {number: {number: 1} for number in documents})

    def calibration_texts(self, n: int, seed: int = 0) -> CalibrationTexts:
        texts = tuple(f"{color} shoes" for color in COLORS[:n])
        return CalibrationTexts(texts, texts)
''',
    "publish": '''
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from optbench.artifact.manifest import FileEntry
from optbench.publish.base import Bundle, Destination, Progress, Uploaded


class Shelf(Destination):
    """A folder, written without care."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.folder = Path(url.removeprefix("shelf://"))

    def read(self, name: str, bytes_max: int) -> bytes | None:
        path = self.folder / name
        return path.read_bytes() if path.is_file() else None

    def missing(self, bundle: Bundle) -> list[str]:
        return [name for name in bundle.files if not (self.folder / name).is_file()]

    def upload(self, bundle: Bundle, progress: Progress) -> Uploaded:
        shutil.copytree(bundle.folder, self.folder)
        return Uploaded(tuple(bundle.files), self.url)

    def download(self, name: str, entry: FileEntry, file: BinaryIO, report: Callable[[int], None]) -> None:
        file.write((self.folder / name).read_bytes()[file.tell() :])
''',
    "loaders": """
from optbench.artifact.manifest import Kind
from optbench.loaders.base import ExportedModel, PythonLoader, Query, load_tokenizer, tokenize


def _load(model: ExportedModel) -> list[str]:
    graph = f"{model.folder}/{model.kind.main_file}"
    imports = ["import numpy as np", "import onnxruntime", "from tokenizers import Tokenizer"]
    return [*imports, *load_tokenizer(model), f"session = onnxruntime.InferenceSession({graph!r})"]


def _embed(model: ExportedModel, query: Query) -> list[str]:
    return [*tokenize(query), 'vectors = session.run(["sentence_embedding"], inputs)[0]']


PLAIN = PythonLoader(
    name="plain",
    title="Plain",
    distribution="onnxruntime",
    packages=("onnxruntime", "tokenizers"),
    reads=(Kind.ONNX,),
    on_card=(Kind.ONNX,),
    runtime="onnxruntime",
    load=_load,
    embed=_embed,
)
""",
}
RECIPE = """\
name: tiny
base:
  source: random
  license: MIT
  body: {architecture: BertModel, layers: 2, hidden: 32, heads: 4, feed_forward: 64, vocabulary: 21, positions: 64, type_vocabulary: 2}
  pooling: mean
  normalize: true
  max_tokens: 64
targets: {speedup_min: 1.1}
engines: [{engine: plain}]
steps: [{step: export_onnx}, {step: copy_onnx}]
workload: {lengths: [8]}
tasks: [{task: colors}]
"""
# What `apply` calls of each, without the measurements: those take a minute.
PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from optbench.artifact.folder import open_artifact, seal
from optbench.artifact.manifest import MANIFEST, Kind
from optbench.machine.cpu import read_machine
from optbench.publish import open_destination
from optbench.publish.base import read_bundle
from optbench.recipe.load import load_recipe
from optbench.steps import StepContext
from optbench.tasks import load_tasks

recipe = load_recipe(Path("tiny.yaml"))
out, scratch, copied = Path("out"), Path("scratch"), Path("copied")
out.mkdir(), scratch.mkdir()
recipe.steps[1].run(open_artifact(Path(sys.argv[1])), out, StepContext(scratch, read_machine()))
artifact = seal(out, copied, Kind.ONNX, "random")
ids = np.array([[2, 5, 3]])
session = recipe.engine_for(Kind.ONNX).open(artifact)
print(type(session).__name__, session.embed(ids, np.ones_like(ids)).shape)
print([(data.name, len(data.queries)) for data in load_tasks(recipe.tasks)])
bundle = read_bundle(copied, (copied / MANIFEST).read_bytes(), {}, scratch)
print(open_destination("shelf://shelf").upload(bundle, print).where)
"""

Run = Callable[..., str]


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs Python with a copy of the package that has the additions."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "optbench", folder / "optbench", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tiny.yaml").write_text(RECIPE)
    for room, (module, imported, entry, registry) in ADDITIONS.items():
        (folder / "optbench" / room / f"{module}.py").write_text(SOURCES[room])
        path = folder / "optbench" / room / "__init__.py"
        text = path.read_text()
        assert text.count(registry) == 1, f"{path}: {registry}"
        text = text.replace(registry, registry + entry)
        line = f"from optbench.{room}.{module} import {imported}\n" if imported else ""
        path.write_text(text.replace("\nfrom optbench.", f"\n{line}from optbench.", 1))

    def run(*arguments: object) -> str:
        command = [sys.executable, *(str(argument) for argument in arguments)]
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_additions_are_checked_planned_and_run(extended: Run, make_artifact: Callable[..., Artifact]) -> None:
    assert "ok, 2 steps" in extended("-m", "optbench", "check", "tiny.yaml")
    assert "copy_onnx" in extended("-m", "optbench", "plan", "tiny.yaml", "--weights", "random", "--cache", "cache")
    done = extended("-c", PROGRAM, make_artifact(Kind.ONNX).path)
    assert done.splitlines() == ["PlainSession (1, 32)", "[('colors', 18)]", "shelf://shelf"]
    extended("-m", "optbench", "pull", "shelf://shelf", "pulled")
    assert '"plain"' in extended("-m", "optbench", "verify", "pulled", "--loaders", "plain", "--cache", "cache", "--json")
