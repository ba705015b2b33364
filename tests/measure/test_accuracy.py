import json
import os
from collections.abc import Callable, Mapping, Sequence
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from optbench.artifact.folder import Artifact
from optbench.errors import MeasureError, TaskError
from optbench.measure.accuracy import AccuracyResult, Encode, accuracy_change, embed_texts, measure_accuracy, spearman_by_pair
from optbench.tasks import PairData, RetrievalData
from optbench.tasks.beir import Beir
from optbench.tasks.retail import Retail
from optbench.tasks.sts import Sts
from optbench.tasks.xquadr import XquadR
from tests.conftest import accuracy_of

DATA = Path(os.environ.get("OPTBENCH_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))


def require(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path} is missing; set OPTBENCH_TEST_DATA to the folder that holds it")
    return path


def table_encoder(vectors: Mapping[str, Sequence[float]]) -> Encode:
    """A model that looks its vectors up, and refuses a text that it is asked twice."""

    def encode(texts: Sequence[str], side: str) -> NDArray[np.float32]:
        assert len(set(texts)) == len(texts)
        return np.array([vectors[text] for text in texts], dtype=np.float32)

    return encode


def at_cosine(cosine: float) -> list[float]:
    return [cosine, (1 - cosine**2) ** 0.5]


def toy(**options: Any) -> RetrievalData:
    """One query whose documents, in the order of cosine, have the grades 1, 3, 0, 2; and one that cannot rank its pool."""
    return RetrievalData(
        name="toy",
        language="en",
        queries={"q": "query", "single": "single"},
        documents={"d3": "three", "d2": "two", "d1": "one", "d0": "zero"},
        relevance={"q": {"d3": 3, "d2": 2, "d1": 1, "d0": 0}, "single": {"d3": 3}},
        **{"ranking": "judged", **options},
    )


TOY_VECTORS = {
    "query": [2.0, 0.0],
    "single": [0.0, 1.0],
    "one": at_cosine(0.9),
    "three": at_cosine(0.8),
    "zero": at_cosine(0.7),
    "two": at_cosine(0.6),
}


def test_ndcg_with_exponential_gain_is_the_one_worked_out_by_hand() -> None:
    result = measure_accuracy(table_encoder(TOY_VECTORS), toy())
    found = 1 / log2(2) + 7 / log2(3) + 0 / log2(4) + 3 / log2(5)
    ideal = 7 / log2(2) + 3 / log2(3) + 1 / log2(4) + 0 / log2(5)
    assert result.metrics["nDCG@10"] == {"q": pytest.approx(found / ideal, abs=1e-6)}  # values are kept to 6 decimals
    assert (result.main_metric, result.n_queries, result.n_left_out, result.n_documents) == ("nDCG@10", 1, 1, 4)


def test_ndcg_with_linear_gain_is_the_one_worked_out_by_hand() -> None:
    result = measure_accuracy(table_encoder(TOY_VECTORS), toy(gain="linear"))
    found = 1 / log2(2) + 3 / log2(3) + 0 / log2(4) + 2 / log2(5)
    ideal = 3 / log2(2) + 2 / log2(3) + 1 / log2(4) + 0 / log2(5)
    assert result.mean() == pytest.approx(found / ideal, abs=1e-6)


def test_reciprocal_rank_counts_from_the_relevant_grade_on() -> None:
    assert measure_accuracy(table_encoder(TOY_VECTORS), toy()).mean("MRR@10") == 1
    assert measure_accuracy(table_encoder(TOY_VECTORS), toy(relevant_from=2)).mean("MRR@10") == 0.5


def test_recall_and_reciprocal_rank_stop_at_ten() -> None:
    names = [f"d{number:02}" for number in range(12)]
    vectors: dict[str, Sequence[float]] = {name: at_cosine(0.99 - number / 100) for number, name in enumerate(names)}
    data = RetrievalData(
        name="deep",
        language="en",
        queries={"eleventh": "query", "first and twelfth": "query"},
        documents={name: name for name in names},
        relevance={"eleventh": {"d10": 1}, "first and twelfth": {"d00": 1, "d11": 1}},
    )
    result = measure_accuracy(table_encoder({"query": [1.0, 0.0], **vectors}), data)
    assert result.metrics["R@10"] == {"eleventh": 0.0, "first and twelfth": 0.5}
    assert result.metrics["MRR@10"] == {"eleventh": 0.0, "first and twelfth": 1.0}


def test_both_rankings_stand_side_by_side_and_the_judged_one_leads() -> None:
    result = measure_accuracy(table_encoder(TOY_VECTORS), toy(ranking="both"))
    assert result.main_metric == "nDCG@10"
    assert result.metrics["nDCG@10"].keys() == {"q"}
    assert result.metrics["full nDCG@10"].keys() == {"q", "single"}


def test_model_with_one_vector_for_all_scores_at_chance_in_any_listing_order() -> None:
    # 200 queries, each with one relevant of 10 documents and that one listed first: chance of rank k is 1/10.
    documents = {f"q{query}d{place}": f"text {query} {place}" for query in range(200) for place in range(10)}
    data = RetrievalData(
        name="chance",
        language="en",
        queries={f"q{query}": f"query {query}" for query in range(200)},
        documents=documents,
        relevance={f"q{query}": {f"q{query}d{place}": int(place == 0) for place in range(10)} for query in range(200)},
        ranking="judged",
    )
    result = measure_accuracy(lambda texts, side: np.ones((len(texts), 4), dtype=np.float32), data)
    chance = sum(1 / log2(place + 2) for place in range(10)) / 10
    # One query's nDCG has a standard deviation of 0.22 under chance: 4 standard errors over 200 queries are 0.063.
    assert result.mean() == pytest.approx(chance, abs=0.063)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_broken_vectors_are_an_error_that_names_the_text(bad: float) -> None:
    with pytest.raises(MeasureError, match="broken model: NaN, infinity or zero for 1 of 4 texts, first 'zero'"):
        measure_accuracy(table_encoder({**TOY_VECTORS, "zero": [bad, 0.0]}), toy())


def test_wrong_number_of_vectors_is_an_error() -> None:
    with pytest.raises(MeasureError, match=r"shape \(1, 2\); expected \(2, dimension\)"):
        embed_texts(lambda texts, side: np.ones((1, 2), dtype=np.float32), ["a", "b"], "query")


def test_equal_texts_are_embedded_once_and_get_equal_vectors() -> None:
    vectors = embed_texts(table_encoder({"a": [3.0, 4.0], "bb": [0.0, 2.0]}), ["bb", "a", "bb"], "document")
    assert vectors[[0, 2]].tolist() == [[0, 1], [0, 1]]
    assert vectors[1].tolist() == pytest.approx([0.6, 0.8], rel=1e-6)  # a float32 division


def test_task_without_rankable_queries_is_refused() -> None:
    data = RetrievalData("none", "en", {"q": "query"}, {"d": "zero"}, {"q": {"d": 0}}, ranking="full")
    with pytest.raises(TaskError, match="no query has a relevant document"):
        measure_accuracy(table_encoder(TOY_VECTORS), data)


def test_change_pairs_queries_by_id_and_not_by_order() -> None:
    change = accuracy_change(accuracy_of("toy", {"a": 1.0, "b": 0.5, "c": 0.2}), accuracy_of("toy", {"c": 0.2, "b": 0.5, "a": 1.0}))
    assert (change.point, change.low, change.high) == (0, 0, 0)


def test_results_of_different_tasks_are_not_compared() -> None:
    with pytest.raises(MeasureError, match=r"nDCG@10 of toy cannot be compared with that of other"):
        accuracy_change(accuracy_of("toy", {"a": 1.0}), accuracy_of("other", {"a": 1.0}))


def test_result_survives_json() -> None:
    measured = measure_accuracy(table_encoder(TOY_VECTORS), toy())
    assert AccuracyResult.model_validate(json.loads(measured.model_dump_json())) == measured


def correlated(n: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 26, n) / 5  # ties, as human scores have
    return scores + generator.normal(0, 1.2, n), scores


def test_shares_of_spearman_have_it_as_their_mean() -> None:
    similarity, scores = correlated(300, 1)
    similarity = similarity.round(1)  # ties on both sides
    assert spearman_by_pair(similarity, scores).mean() == pytest.approx(stats.spearmanr(similarity, scores).statistic, abs=1e-12)


def test_shares_of_spearman_spread_as_its_bootstrap_does() -> None:
    similarity, scores = correlated(300, 2)
    generator = np.random.default_rng(0)
    draws = generator.integers(0, 300, (1000, 300))
    resampled = [stats.spearmanr(similarity[draw], scores[draw]).statistic for draw in draws]
    error = spearman_by_pair(similarity, scores).std(ddof=1) / 300**0.5
    # A standard deviation from 1,000 draws is itself known to 2.2 %, and the jackknife's bias is of the order 1/300: 4 errors.
    assert error == pytest.approx(np.std(resampled), rel=0.1)


def test_shares_of_spearman_are_the_jackknife_with_each_pair_ranked_without() -> None:
    similarity, scores = (values.round(1) for values in correlated(30, 3))
    whole = stats.spearmanr(similarity, scores).statistic
    without = [stats.spearmanr(np.delete(similarity, pair), np.delete(scores, pair)).statistic for pair in range(30)]
    pseudo = 30 * whole - 29 * np.array(without)
    np.testing.assert_allclose(spearman_by_pair(similarity, scores), pseudo - pseudo.mean() + whole, atol=1e-9)


def test_constant_similarity_ranks_nothing() -> None:
    assert spearman_by_pair(np.full(5, 0.3), np.arange(5.0)).tolist() == [0] * 5


def test_pairs_are_scored_by_rank_correlation() -> None:
    data = PairData("sts:toy", "en", ("query", "query", "query"), ("one", "three", "two"), (5.0, 4.0, 1.0))
    measured = measure_accuracy(table_encoder(TOY_VECTORS), data)
    assert measured.main_metric == "Spearman"
    assert measured.mean() == pytest.approx(1.0, abs=1e-6)  # values are kept to 6 decimals


@pytest.fixture(scope="module")
def minilm(minilm_checkpoint: Artifact) -> Callable[[Sequence[str], str], NDArray[np.float32]]:
    """all-MiniLM-L6-v2 in torch, fp32; remembers what it has embedded."""
    import torch

    from optbench.model.tokenizer import encode_batch, load_tokenizer
    from optbench.model.torch_model import build_module

    module, tokenizer = build_module(minilm_checkpoint.path), load_tokenizer(minilm_checkpoint.path)
    known: dict[str, NDArray[np.float32]] = {}

    def encode(texts: Sequence[str], side: str) -> NDArray[np.float32]:
        new = sorted((text for text in texts if text not in known), key=len)  # little padding
        with torch.inference_mode():
            for start in range(0, len(new), 64):
                part = new[start : start + 64]
                ids, mask = encode_batch(tokenizer, part)
                known.update(zip(part, module(torch.from_numpy(ids), torch.from_numpy(mask))[1].numpy(), strict=True))
        return np.stack([known[text] for text in texts])

    return encode


def test_minilm_reaches_its_known_figure_on_chorus(minilm: Encode) -> None:
    folder = require(DATA / "chorus")
    measured = measure_accuracy(minilm, Beir(path=folder, text="title", ranking="judged", gain="exponential").load())
    assert (measured.n_queries, measured.n_left_out) == (99, 36)
    # The published figure has four decimals; float noise moves a near-tie in one of 99 queries at most.
    assert measured.mean() == pytest.approx(0.8558, abs=0.0005)


@pytest.mark.parametrize(
    ("name", "n_queries", "n_documents", "ranking"),
    [("semipqa", 1454, 3627, "judged"), ("piaf", 3835, 761, "full"), ("selqa", 785, 8127, "judged"), ("chorus", 135, 19406, "judged")],
)
def test_real_folders_are_read_as_they_are(name: str, n_queries: int, n_documents: int, ranking: str) -> None:
    data = Beir.from_folder(require(DATA / name)).load()
    assert (len(data.queries), len(data.documents), data.ranking) == (n_queries, n_documents, ranking)


def test_xquadr_has_the_published_numbers_of_questions_and_sentences() -> None:
    data = XquadR(path=require(DATA / "xquadr" / "en.json")).load()
    assert (len(data.queries), len(data.documents)) == (1190, 1180)


def test_sts_benchmark_has_the_published_number_of_pairs() -> None:
    for language in ("en", "de", "fr"):
        data = Sts(path=require(DATA / "stsb" / f"stsb-{language}-test.csv")).load()
        assert (len(data.scores), data.language) == (1379, language)


def test_minilm_is_good_on_the_retail_task_and_a_model_of_noise_is_not(minilm: Encode) -> None:
    data = Retail().load()
    good = measure_accuracy(minilm, data)
    assert 0.80 < good.mean() < 0.90
    generator = np.random.default_rng(0)
    noise = measure_accuracy(lambda texts, side: generator.normal(size=(len(texts), 384)).astype(np.float32), data)
    assert accuracy_change(good, noise).high < -0.5


def test_retail_task_passes_a_faithful_model_and_fails_a_degraded_one_at_one_percent(minilm: Encode) -> None:
    data = Retail().load()

    def moved(cosine: float) -> Encode:
        generator = np.random.default_rng(0)

        def encode(texts: Sequence[str], side: Any) -> NDArray[np.float32]:
            vectors = minilm(texts, side)
            noise = generator.normal(size=vectors.shape)
            noise *= np.sqrt(1 / cosine**2 - 1) / np.linalg.norm(noise, axis=1, keepdims=True)
            return (vectors + noise).astype(np.float32)

        return encode

    base = measure_accuracy(minilm, data)
    faithful = accuracy_change(base, measure_accuracy(moved(0.999), data))
    assert faithful.low > -0.01
    assert faithful.half_width < 0.005
    assert accuracy_change(base, measure_accuracy(moved(0.8), data)).high < -0.01
