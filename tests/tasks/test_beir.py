import gzip
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optbench.errors import TaskError
from optbench.tasks.beir import Beir

CORPUS = [
    {"_id": "d1", "title": "Silent mouse", "text": "black"},
    {"_id": "d2", "title": "Loud mouse", "text": ""},
    {"_id": "d3", "title": "", "text": "oak desk with a drawer"},
    {"_id": "d4", "title": "Desk lamp", "text": "warm light for reading"},
]
QUERIES = [{"_id": "q1", "text": "quiet mouse"}, {"_id": "q2", "text": "wooden desk"}, {"_id": "q3", "text": "spare query"}]
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t3\nq1\td2\t0\nq2\td3\t1\n"


def write_folder(folder: Path, *, corpus: list[dict[str, Any]] = CORPUS, qrels: str = QRELS, gz: bool = False) -> Path:
    for stem, records in (("corpus", corpus), ("queries", QUERIES)):
        content = "".join(json.dumps(record) + "\n" for record in records).encode()
        if gz:
            (folder / f"{stem}.jsonl.gz").write_bytes(gzip.compress(content))
        else:
            (folder / f"{stem}.jsonl").write_bytes(content)
    (folder / "qrels").mkdir()
    if gz:
        (folder / "qrels" / "test.tsv.gz").write_bytes(gzip.compress(qrels.encode()))
    else:
        (folder / "qrels" / "test.tsv").write_text(qrels)
    return folder


@pytest.mark.parametrize("gz", [False, True])
def test_plain_and_gzipped_folders_read_alike(tmp_path: Path, gz: bool) -> None:
    data = Beir(path=write_folder(tmp_path, gz=gz)).load()
    assert data.queries == {"q1": "quiet mouse", "q2": "wooden desk"}
    assert data.documents["d1"] == "Silent mouse black"
    assert data.documents["d2"] == "Loud mouse"
    assert data.relevance == {"q1": {"d1": 3, "d2": 0}, "q2": {"d3": 1}}


def test_document_without_text_in_the_chosen_field_is_left_out_unless_judged(tmp_path: Path) -> None:
    write_folder(tmp_path, qrels="query-id\tcorpus-id\tscore\nq1\td1\t3\nq1\td2\t0\n")
    assert list(Beir(path=tmp_path, text="title").load().documents) == ["d1", "d2", "d4"]
    (tmp_path / "qrels" / "test.tsv").write_text(QRELS)
    with pytest.raises(TaskError, match=r"judges document 'd3' for query 'q2', but corpus.jsonl has no text for it in 'title'"):
        Beir(path=tmp_path, text="title").load()


def test_queries_of_one_grade_cannot_rank_a_pool_but_can_rank_a_corpus(tmp_path: Path) -> None:
    data = Beir(path=write_folder(tmp_path)).load()
    assert data.rankable("judged") == ("q1",)
    assert data.rankable("full") == ("q1", "q2")


def test_judged_ranking_embeds_only_the_rankable_pools(tmp_path: Path) -> None:
    write_folder(tmp_path)
    assert Beir(path=tmp_path, ranking="judged").load().candidates == ("d1", "d2")
    assert Beir(path=tmp_path, ranking="both").load().candidates == ("d1", "d2", "d3", "d4")


def test_gains_follow_the_option(tmp_path: Path) -> None:
    write_folder(tmp_path)
    assert Beir(path=tmp_path, gain="exponential").load().gains == {0: 0, 1: 1, 3: 7}
    assert Beir(path=tmp_path, gain="linear").load().gains == {0: 0, 1: 1, 3: 3}


def test_folder_with_zeros_is_taken_for_a_judged_pool(tmp_path: Path) -> None:
    task = Beir.from_folder(write_folder(tmp_path))
    assert (task.text, task.ranking, task.gain) == ("title", "judged", "exponential")


def test_folder_of_relevant_documents_only_is_ranked_in_full(tmp_path: Path) -> None:
    task = Beir.from_folder(write_folder(tmp_path, qrels="q1\td1\t1\nq2\td3\t1\n"))
    assert (task.text, task.ranking, task.gain) == ("title text", "full", "linear")


def test_negative_grade_counts_as_zero(tmp_path: Path) -> None:
    data = Beir(path=write_folder(tmp_path, qrels="q1\td1\t2\nq1\td2\t-2\n")).load()
    assert data.relevance == {"q1": {"d1": 2, "d2": 0}}


def test_calibration_takes_unjudged_documents_and_unasked_queries(tmp_path: Path) -> None:
    spare = Beir(path=write_folder(tmp_path)).calibration_texts(10)
    assert spare.queries == ("spare query",)
    assert spare.documents == ("Desk lamp warm light for reading",)
    assert "1 queries that are not in the test" in spare.note


def test_calibration_without_spare_queries_cuts_documents_to_query_length_and_says_so(tmp_path: Path) -> None:
    write_folder(tmp_path, qrels=QRELS + "q3\td3\t1\n")
    spare = Beir(path=tmp_path).calibration_texts(10)
    assert spare.queries == ("Desk lamp",)
    assert "no queries outside the test" in spare.note


def test_calibration_leaves_out_what_is_tested_in_whatever_case(tmp_path: Path) -> None:
    twins = [
        {"_id": "d5", "title": "OAK desk  with a Drawer", "text": ""},
        {"_id": "d6", "title": "Quiet Mouse for homes", "text": ""},
    ]
    write_folder(tmp_path, corpus=[*CORPUS, *twins], qrels=QRELS + "q3\td3\t1\n")
    spare = Beir(path=tmp_path).calibration_texts(10)
    assert set(spare.documents) == {"Desk lamp warm light for reading", "Quiet Mouse for homes"}
    assert set(spare.queries) == {"Desk lamp"}


def test_calibration_refuses_a_folder_whose_documents_are_all_judged(tmp_path: Path) -> None:
    write_folder(tmp_path, qrels=QRELS + "q1\td4\t0\n")
    with pytest.raises(TaskError, match="every document is judged"):
        Beir(path=tmp_path).calibration_texts(10)


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        ("q1\td1\n", r"test\.tsv:1: found 'q1\\td1'"),
        ("q1\td1\t1\nq1 d2 0\n", r"test\.tsv:2: found 'q1 d2 0'"),
        ("q1\td1\thigh\n", r"a whole score"),
        ("q1\td1\t1\nquery-id\tcorpus-id\tscore\n", r"test\.tsv:2: found 'query-id"),
        ("q1\td1\t31\n", r"a whole score of at most 30"),
        ("q1\td9\t1\n", r"judges document 'd9' for query 'q1', but corpus.jsonl has no text"),
        ("q9\td1\t1\n", r"judges query 'q9', which is not in queries.jsonl"),
        ("query-id\tcorpus-id\tscore\n", r"contains no judgments"),
    ],
)
def test_broken_judgments_are_named_by_line(tmp_path: Path, qrels: str, message: str) -> None:
    write_folder(tmp_path, qrels=qrels)
    with pytest.raises(TaskError, match=message):
        Beir(path=tmp_path).load()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"_id": "d1"', r"corpus\.jsonl:1: .*one JSON object on each line"),
        (b'{"_id": 7, "title": "x"}\n', r"corpus\.jsonl:1: found .*expected an object with _id"),
        (b'["d1"]\n', r"expected an object with _id"),
        (b'{"_id": "d1"}\n{"_id": "d1"}\n', r"corpus\.jsonl:2: duplicate _id 'd1'"),
        (b'{"_id": "\xff"}\n', r"one JSON object on each line"),
    ],
)
def test_broken_corpus_lines_are_named(tmp_path: Path, line: bytes, message: str) -> None:
    write_folder(tmp_path)
    (tmp_path / "corpus.jsonl").write_bytes(line)
    with pytest.raises(TaskError, match=message):
        Beir(path=tmp_path).load()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"not gzip at all", id="not gzip"),
        pytest.param(gzip.compress(b'{"_id": "d1", "title": "cut off"}\n' * 50)[:-20], id="cut off"),
    ],
)
def test_broken_gzip_says_that_it_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    write_folder(tmp_path, gz=True)
    (tmp_path / "corpus.jsonl.gz").write_bytes(content)
    with pytest.raises(TaskError, match=r"corpus\.jsonl\.gz:\d+: (cannot be read|duplicate _id 'd1')"):
        Beir(path=tmp_path).load()


def test_missing_split_names_those_that_are_there(tmp_path: Path) -> None:
    write_folder(tmp_path)
    with pytest.raises(TaskError, match=r"qrels/dev\.tsv: No such file or directory; available splits: test"):
        Beir(path=tmp_path, split="dev").load()


def test_split_cannot_leave_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split"):
        Beir(path=tmp_path, split="../../etc/passwd")


def test_missing_corpus_says_what_a_beir_folder_holds(tmp_path: Path) -> None:
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "x"}\n')
    with pytest.raises(TaskError, match=r"has neither corpus\.jsonl nor corpus\.jsonl\.gz"):
        Beir(path=tmp_path).load()


@given(st.binary(max_size=200))
def test_any_bytes_as_judgments_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = write_folder(tmp_path_factory.mktemp("beir"))
    (folder / "qrels" / "test.tsv").write_bytes(content)
    # What is not judgments is refused, never a traceback.
    with suppress(TaskError):
        assert Beir(path=folder).load().relevance
