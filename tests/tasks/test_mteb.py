"""MTEB tasks by name, read by mteb's own loaders from data sets in local folders: no hub."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from mteb.abstasks import AbsTaskClassification, AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from numpy.typing import NDArray

from optbench.errors import TaskError
from optbench.measure.accuracy import measure_accuracy
from optbench.tasks import PairData, RetrievalData, load_tasks, parse_task
from optbench.tasks.mteb import Mteb

CORPUS = [
    {"_id": "d1", "title": "Silent mouse", "text": "black"},
    {"_id": "d2", "title": "", "text": "Loud mouse"},
    {"_id": "d3", "title": "", "text": "oak desk with a drawer"},
    {"_id": "d4", "title": "Desk lamp", "text": "warm light for reading"},
    {"_id": "q1", "title": "", "text": "quiet mouse"},
]
QUERIES = [{"_id": "q1", "text": "quiet mouse"}, {"_id": "q2", "text": "wooden desk"}, {"_id": "q3", "text": "nobody judged this"}]
QRELS = [
    {"query-id": "q1", "corpus-id": "d1", "score": 2},
    {"query-id": "q1", "corpus-id": "d2", "score": 1},
    {"query-id": "q2", "corpus-id": "d3", "score": 1},
]
TOP_RANKED = [{"query-id": "q1", "corpus-ids": ["d2", "d3", "d1"]}, {"query-id": "q2", "corpus-ids": ["d4", "d3"]}]
PAIRS = [{"sentence1": f"a {n}", "sentence2": f"b {n}", "score": float(n)} for n in range(4)]


def write_data_set(folder: Path, configs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
    """A data set as the hub has them: a file a configuration, named in the card's front matter."""
    folder.mkdir()
    lines = ["---", "configs:"]
    for config, rows in configs.items():
        (folder / f"{config}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        lines += [f"- config_name: {config}", "  data_files:", "  - split: test", f"    path: {config}.jsonl"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


def metadata(name: str, kind: str, folder: Path, languages: Any = ("eng-Latn",), metric: str = "ndcg_at_10") -> TaskMetadata:
    return TaskMetadata(
        name=name,
        description="made by a test",
        dataset={"path": str(folder), "revision": "1"},
        type=kind,
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=languages if isinstance(languages, dict) else list(languages),
        main_score=metric,
        license="cc0-1.0",
    )


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Make a task known to mteb under its name, as a task that it ships is."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    registry = sys.modules["mteb.get_tasks"]._TASKS_REGISTRY

    def add(base: type, described: TaskMetadata, **attributes: Any) -> None:
        monkeypatch.setitem(registry, described.name, type(described.name, (base,), {"metadata": described, **attributes}))

    return add


@pytest.fixture
def retrieval(register: Callable[..., None], tmp_path: Path) -> None:
    folder = write_data_set(tmp_path / "retrieval", {"corpus": CORPUS, "queries": QUERIES, "default": QRELS})
    register(AbsTaskRetrieval, metadata("Local", "Retrieval", folder))


def loaded(name: str) -> RetrievalData:
    data = Mteb(mteb_name=name).load()
    assert isinstance(data, RetrievalData)
    return data


@pytest.mark.usefixtures("retrieval")
def test_retrieval_task_is_read_by_name() -> None:
    data = loaded("Local")
    assert (data.name, data.language, data.ranking, data.gain) == ("mteb:Local", "eng", "full", "linear")
    assert data.queries == {"q1": "quiet mouse", "q2": "wooden desk"}
    assert data.documents["d1"] == "Silent mouse black"
    assert data.documents["d2"] == "Loud mouse"
    assert data.relevance == {"q1": {"d1": 2, "d2": 1}, "q2": {"d3": 1}}


class Words:
    """A model of word overlap, for mteb's own evaluation and for ours."""

    mteb_model_meta = None

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = np.full((len(texts), 64), 0.01, dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.lower().split():
                row[sum(word.encode()) % 64] += 1
        unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit

    def encode(self, inputs: Any, **options: Any) -> NDArray[np.float32]:
        return np.concatenate([self.vectors(batch["text"]) for batch in inputs])

    def similarity(self, first: NDArray[np.float32], second: NDArray[np.float32]) -> Any:
        import torch

        return torch.from_numpy(np.asarray(first) @ np.asarray(second).T)

    def similarity_pairwise(self, first: NDArray[np.float32], second: NDArray[np.float32]) -> Any:
        import torch

        return torch.from_numpy((np.asarray(first) * np.asarray(second)).sum(axis=1))


@pytest.mark.parametrize("without_itself", [False, True])
def test_figures_are_those_of_mteb_itself(register: Callable[..., None], tmp_path: Path, without_itself: bool) -> None:
    folder = write_data_set(tmp_path / "retrieval", {"corpus": CORPUS, "queries": QUERIES, "default": QRELS})
    register(AbsTaskRetrieval, metadata("Local", "Retrieval", folder), ignore_identical_ids=without_itself)
    ours = measure_accuracy(lambda texts, side: Words().vectors(texts), loaded("Local"))
    theirs = mteb.get_task("Local").evaluate(Words(), "test", encode_kwargs={})["default"]
    assert ours.mean("nDCG@10") == pytest.approx(theirs["ndcg_at_10"], abs=1e-5)  # mteb rounds to 5 decimals
    assert ours.mean("R@10") == pytest.approx(theirs["recall_at_10"], abs=1e-5)
    # The corpus holds q1 itself, word for word: where it counts, it takes the first place.
    assert (ours.metrics["nDCG@10"]["q1"] > 0.8) == without_itself


def test_reranking_task_ranks_each_querys_own_candidates(register: Callable[..., None], tmp_path: Path) -> None:
    configs: dict[str, list[dict[str, Any]]] = {"corpus": CORPUS, "queries": QUERIES, "default": QRELS, "top_ranked": TOP_RANKED}
    register(
        AbsTaskRetrieval, metadata("LocalReranking", "Reranking", write_data_set(tmp_path / "reranking", configs), metric="map_at_1000")
    )
    data = loaded("LocalReranking")
    assert data.ranking == "judged"
    assert data.relevance == {"q1": {"d2": 1, "d3": 0, "d1": 2}, "q2": {"d4": 0, "d3": 1}}


@pytest.fixture
def multilingual(register: Callable[..., None], tmp_path: Path) -> None:
    folder = write_data_set(tmp_path / "sts", {"en": PAIRS, "fr-en": PAIRS[::-1]})
    languages = {"en": ["eng-Latn"], "fr-en": ["fra-Latn", "eng-Latn"]}
    register(AbsTaskSTS, metadata("LocalSTS", "STS", folder, languages, "cosine_spearman"))


@pytest.mark.usefixtures("multilingual")
def test_each_language_of_a_task_is_a_part_with_its_share_of_the_weight() -> None:
    english, french = load_tasks([Mteb(mteb_name="LocalSTS", weight=3.0)])
    assert isinstance(english, PairData)
    assert (english.name, english.language, english.weight) == ("mteb:LocalSTS:en", "eng", 1.5)
    assert (french.name, french.language, french.weight) == ("mteb:LocalSTS:fr-en", "fra-eng", 1.5)
    assert (english.first[1], english.second[1], english.scores[1]) == ("a 1", "b 1", 1.0)


@pytest.mark.usefixtures("multilingual")
def test_subsets_can_be_chosen_and_unknown_ones_are_named() -> None:
    (english,) = load_tasks([Mteb(mteb_name="LocalSTS", subsets=("en",))])
    assert english.name == "mteb:LocalSTS:en"
    with pytest.raises(TaskError, match=r"mteb:LocalSTS:de: has no subset de; choose from en, fr-en"):
        load_tasks([Mteb(mteb_name="LocalSTS", subsets=("de",))])
    with pytest.raises(TaskError, match=r"has 2 subsets \(en, fr-en\); load them one by one"):
        Mteb(mteb_name="LocalSTS").load()


@pytest.mark.usefixtures("multilingual")
def test_sts_task_has_nothing_to_calibrate_on() -> None:
    spare = Mteb(mteb_name="LocalSTS").calibration_texts(8)
    assert (spare.queries, spare.documents) == ((), ())
    assert "every sentence of mteb:LocalSTS:en is judged" in spare.note


@pytest.mark.usefixtures("retrieval")
def test_calibration_takes_documents_that_nobody_judged() -> None:
    spare = Mteb(mteb_name="Local").calibration_texts(8)
    assert spare.documents == ("Desk lamp warm light for reading",)
    assert spare.queries == ("Desk lamp",)


def test_task_of_another_kind_is_refused(register: Callable[..., None], tmp_path: Path) -> None:
    register(AbsTaskClassification, metadata("LocalClasses", "Classification", tmp_path, metric="accuracy"))
    with pytest.raises(TaskError, match="mteb:LocalClasses: is a Classification task; choose a retrieval, reranking or STS"):
        Mteb(mteb_name="LocalClasses").load()


def test_unknown_name_gets_mtebs_nearest() -> None:
    with pytest.raises(TaskError, match=r"mteb has no such task.*Did you mean: 'NFCorpus'"):
        load_tasks([Mteb(mteb_name="NFCorpsu")])


def test_data_set_that_cannot_be_read_says_what_is_wanted(register: Callable[..., None], tmp_path: Path) -> None:
    register(AbsTaskRetrieval, metadata("Gone", "Retrieval", tmp_path / "gone"))
    with pytest.raises(TaskError, match=r"mteb:Gone: mteb cannot read split 'test': .*hub reachable"):
        Mteb(mteb_name="Gone").load()


def test_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(TaskError, match=r"mteb is not installed .*pip install 'optbench\[mteb\]'"):
        load_tasks([Mteb(mteb_name="NFCorpus")])


def test_command_line_takes_the_name() -> None:
    assert parse_task("mteb:NFCorpus") == Mteb(mteb_name="NFCorpus")
