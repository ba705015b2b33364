"""A model beside the fp32 base: all its own, its queries in the base's index, and how much of the top ten stays."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from optbench.errors import MeasureError
from optbench.measure import accuracy
from optbench.measure.accuracy import AccuracyResult, Encode, accuracy_change, embed_documents, measure_accuracy
from optbench.record.gate import gate
from optbench.record.record import Record
from optbench.record.verdict import judge
from optbench.report.accuracy import accuracy_table, query_side_table
from optbench.tasks import PairData, RetrievalData


def on_circle(degrees: Mapping[str, float]) -> Encode:
    """A model that puts each text at an angle."""

    def encode(texts: Sequence[str], side: str) -> NDArray[np.float32]:
        angles = np.radians([degrees[text] for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    return encode


# 20 documents at 1, 2, ... degrees: a query at 0 has the first ten as its ten nearest, one at 15 the fourth to the twentieth.
DOCUMENTS = {f"d{number}": float(number) for number in range(1, 21)}
DATA = RetrievalData(
    name="circle",
    language="en",
    queries={"q": "query", "other": "other"},
    documents={name: name for name in DOCUMENTS},
    relevance={"q": {"d1": 1}, "other": {"d20": 1}},
)
BASE = on_circle({**DOCUMENTS, "query": 0.0, "other": 21.0})


def test_model_equal_to_the_base_keeps_everything() -> None:
    result = measure_accuracy(BASE, DATA, base=BASE)
    assert result.query_side is not None
    assert result.metrics == result.query_side.metrics
    assert result.overlap == result.query_side.overlap == {"q": 1.0, "other": 1.0}


def test_ten_documents_remain_once_a_query_is_left_out_of_its_own_results() -> None:
    # "d1" as a query lies on its own document; the tenth of the others is d11.
    data = replace(DATA, queries={"d1": "d1"}, relevance={"d1": {"d11": 1}}, without_itself=True)
    assert measure_accuracy(BASE, data).mean("R@10") == 1.0


def test_query_side_takes_the_documents_of_the_base_and_the_queries_of_the_model() -> None:
    # The model turns the documents round and leaves the queries: its own ranking is upside down, its queries alone are as before.
    turned = on_circle({**{name: 21.0 - angle for name, angle in DOCUMENTS.items()}, "query": 0.0, "other": 21.0})
    result = measure_accuracy(turned, DATA, base=BASE)
    assert result.mean("R@10") == 0.0
    assert result.overlap == {"q": 0.0, "other": 0.0}
    assert result.on_index("fp32").metrics == measure_accuracy(BASE, DATA).metrics
    assert result.on_index("fp32").overlap == {"q": 1.0, "other": 1.0}


def test_overlap_counts_which_of_the_ten_nearest_stay_in_any_order() -> None:
    # From 8.6 degrees the ten nearest are 4 to 13: seven of the base's 1 to 10.
    moved = on_circle({**DOCUMENTS, "query": 8.6, "other": 21.0})
    result = measure_accuracy(moved, DATA, base=BASE)
    assert result.overlap == {"q": 0.7, "other": 1.0}


def test_documents_in_many_windows_give_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = on_circle({**DOCUMENTS, "query": 8.6, "other": 21.0})
    whole = measure_accuracy(moved, DATA, base=BASE)
    monkeypatch.setattr(accuracy, "WINDOW", 3)
    calls: list[int] = []

    def counted(texts: Sequence[str], side: Literal["query", "document"]) -> NDArray[np.float32]:
        calls.append(len(texts))
        return moved(texts, side)

    assert measure_accuracy(counted, DATA, base=BASE) == whole
    assert len(calls) == 1 + 7  # the queries, and seven windows of documents


def test_model_of_another_dimension_has_no_query_side_and_says_so_when_it_should_judge() -> None:
    def wide(texts: Sequence[str], side: str) -> NDArray[np.float32]:
        return np.pad(BASE(texts, "query"), ((0, 0), (0, 1)))

    result = measure_accuracy(wide, DATA, base=BASE)
    assert result.overlap == {"q": 1.0, "other": 1.0}
    with pytest.raises(MeasureError, match="circle: was not measured against the fp32 base's documents; measure again"):
        result.on_index("fp32")


def test_documents_of_another_dimension_than_the_queries_are_refused() -> None:
    def uneven(texts: Sequence[str], side: str) -> NDArray[np.float32]:
        return np.ones((len(texts), 2 if side == "query" else 3), dtype=np.float32)

    with pytest.raises(MeasureError, match=r"circle: document vectors have shape \(20, 3\); expected \(20, 2\)"):
        measure_accuracy(uneven, DATA)


@pytest.mark.parametrize("rows", [19, 21])
def test_index_of_too_few_or_too_many_documents_is_refused(rows: int) -> None:
    with pytest.raises(MeasureError, match=rf"circle: document vectors have shape \({rows}, 2\); expected \(20, 2\)"):
        measure_accuracy(BASE, DATA, document_embeddings=np.ones((rows, 2), dtype=np.float32))


def test_documents_of_an_index_that_exists_are_not_embedded_again() -> None:
    index = np.concatenate(list(embed_documents(BASE, DATA)))
    queries_only = on_circle({"query": 0.0, "other": 21.0})
    assert measure_accuracy(queries_only, DATA, document_embeddings=index) == measure_accuracy(BASE, DATA)


def test_pairs_take_the_second_sentence_from_the_base() -> None:
    data = PairData("sts:toy", "en", ("a", "a", "a"), ("b", "c", "d"), (3.0, 2.0, 1.0))
    base = on_circle({"a": 0.0, "b": 10.0, "c": 20.0, "d": 30.0})
    shuffled = on_circle({"a": 0.0, "b": 30.0, "c": 20.0, "d": 10.0})
    result = measure_accuracy(shuffled, data, base=base)
    assert result.mean() == pytest.approx(-1.0, abs=1e-6)  # values are kept to 6 decimals
    assert result.on_index("fp32").mean() == pytest.approx(1.0, abs=1e-6)
    assert result.overlap is None


def recorded(make_record: Callable[..., Record], index: str) -> Record:
    """A record whose final model lost a tenth with its own documents and nothing as queries in the base's index."""
    before = {f"q{number}": 0.5 + number / 1000 for number in range(200)}
    after = {query: 0.9 * value for query, value in before.items()}
    record = make_record(candidate_ms=20, accuracy=(before, after))
    (result,) = record.final.accuracy
    beside = {"metrics": {"nDCG@10": before}, "overlap": dict.fromkeys(before, 0.9)}
    result = AccuracyResult.model_validate({**result.model_dump(), "query_side": beside, "overlap": dict.fromkeys(before, 0.8)})
    recipe = record.recipe.model_copy(update={"targets": record.recipe.targets.model_copy(update={"index": index})})
    points = (record.points[0], record.final.model_copy(update={"accuracy": (result,)}))
    return record.model_copy(update={"points": points, "recipe": recipe})


@pytest.mark.parametrize(
    ("index", "outcome", "about", "judged_by"),
    [
        ("own", "fail", "nDCG@10 on judged", "queries and documents of the result"),
        ("fp32", "pass", "nDCG@10 on judged, fp32 index", "the result's queries in the fp32 base's index"),
    ],
)
def test_recipe_says_which_index_judges(make_record: Callable[..., Record], index: str, outcome: str, about: str, judged_by: str) -> None:
    verdict = judge(recorded(make_record, index))
    assert (verdict.outcome, verdict.findings[-1].outcome, verdict.findings[-1].about) == (outcome, outcome, about)
    assert judged_by in verdict.judged_by


def test_both_indexes_and_the_overlap_are_shown(make_record: Callable[..., Record]) -> None:
    record = recorded(make_record, "own")
    own, beside = accuracy_table(record), query_side_table(record)
    assert own is not None
    assert beside is not None
    assert [row[1] for row in own.rows] == ["base", "0 quantize_static"]
    assert own.rows[1][4] == "-10.0"
    assert beside.rows == [["judged", "0 quantize_static", "+0.0", "+0.0..+0.0", "0.900", "0.800"]]


def test_record_of_a_model_measured_alone_has_no_such_table(make_record: Callable[..., Record]) -> None:
    values = {"a": 0.5, "b": 0.7}
    assert query_side_table(make_record(accuracy=(values, values))) is None


@pytest.mark.parametrize(("index", "outcome", "about"), [("own", "fail", "on judged"), ("fp32", "pass", "on judged, fp32 index")])
def test_gate_compares_on_the_index_that_the_recipe_judges(
    make_record: Callable[..., Record], index: str, outcome: str, about: str
) -> None:
    worse = recorded(make_record, index)
    (result,) = worse.final.accuracy
    before = result.query_side.metrics if result.query_side else {}
    unharmed = worse.final.model_copy(update={"accuracy": (result.model_copy(update={"metrics": before}),)})
    checks = gate(worse.model_copy(update={"points": (worse.points[0], unharmed)}), worse).checks
    assert [check.outcome for check in checks if check.about == f"nDCG@10 {about}"] == [outcome]


def test_change_on_the_base_index_is_against_the_base_alone(make_record: Callable[..., Record]) -> None:
    record = recorded(make_record, "own")
    change = accuracy_change(record.points[0].accuracy[0], record.final.accuracy[0].on_index("fp32"))
    assert (change.point, change.low, change.high) == (0, 0, 0)
