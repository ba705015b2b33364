"""Whole runs on a tiny model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import optbench
from optbench.artifact.folder import Artifact
from optbench.base.entry import Base
from optbench.base.obtain import obtain_base
from optbench.model.checkpoint import describe
from optbench.recipe.load import load_recipe
from optbench.recipe.schema import Recipe
from optbench.run.apply import Applied
from optbench.run.cache import Cache
from optbench.run.conformance import read_conformance
from optbench.run.plan import Options
from tests.conftest import WORDS
from tests.run.runs import STEPS


def write_task(folder: Path) -> None:
    """A BEIR folder of 48 documents and 16 queries: each query is two of the three words of its document."""
    (folder / "qrels").mkdir(parents=True)
    texts = [[WORDS[(number * step) % len(WORDS)] for step in (1, 3, 5)] for number in range(1, 49)]
    documents = [{"_id": f"d{number}", "text": f"{' '.join(words)} {number}"} for number, words in enumerate(texts)]
    queries = [{"_id": f"q{number}", "text": " ".join(words[:2])} for number, words in enumerate(texts[:16])]
    for name, rows in {"corpus": documents, "queries": queries}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    qrels = [f"q{number}\td{number + shift}\t{grade}" for number in range(16) for shift, grade in ((0, 1), (16, 0))]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *qrels]), encoding="utf-8")


@pytest.fixture(scope="module")
def write_recipe(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Artifact]) -> Callable[..., Path]:
    def write(steps: str = STEPS, task: str = "") -> Path:
        path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
        write_task(path.parent / "shoes")
        path.write_text(
            f"""\
name: tiny
base:
  source: path:{make_checkpoint().path}
  license: MIT
  body: {{architecture: BertModel, layers: 2, hidden: 32, heads: 4, feed_forward: 64, vocabulary: 21, positions: 64, type_vocabulary: 2}}
  pooling: mean
  normalize: true
  max_tokens: 64
targets: {{speedup_min: 0.001, accuracy_loss_max: 0.5}}
steps:
{steps}workload: {{lengths: [8, 16], rounds: 6, processes: 1}}
calibration: {{texts: 16}}
fidelity: {{cosine_mean_min: 0.9, cosine_min: 0.5, texts: 32}}
stability: {{cosine_min: 0.99, texts: 16, changes: [order, padding, batch]}}
tasks:
  - {task or f"{{task: beir, path: {path.parent / 'shoes'}}}"}
""",
            encoding="utf-8",
        )
        return path

    return write


@pytest.fixture(scope="session")
def base_cache(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Artifact]) -> Path:
    """A cache that holds the tiny recipe's base, compared with its libraries: importing those in every run would take most of its time."""
    folder, cache = make_checkpoint().path, Cache(tmp_path_factory.mktemp("base") / "cache")
    base = Base(source=f"path:{folder}", license="MIT", **describe(folder).model_dump())
    assert read_conformance(obtain_base(base, cache=cache.root), base, cache) is not None
    return cache.root


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, write_recipe: Callable[..., Path], base_cache: Path) -> tuple[Recipe, Path, Applied]:
    """A recipe that has run once, and the folder that holds its cache and output."""
    recipe = load_recipe(write_recipe(task="task: retail"))
    root = tmp_path_factory.mktemp("finished")
    shutil.copytree(base_cache, root / "cache")
    return recipe, root, optbench.apply(recipe, Options(cache=Cache(root / "cache"), output=root / "exported"))


@pytest.fixture
def finished_options(finished: tuple[Recipe, Path, Applied], options: Options, tmp_path: Path) -> Options:
    """A copy of the finished run, to continue from."""
    shutil.copytree(finished[1], tmp_path, dirs_exist_ok=True)
    return options


@pytest.fixture
def options(tmp_path: Path, base_cache: Path) -> Options:
    shutil.copytree(base_cache, tmp_path / "cache")
    return Options(cache=Cache(tmp_path / "cache"), output=tmp_path / "exported")
