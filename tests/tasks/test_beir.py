import csv
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


def test_documents_without_text_are_left_out_with_a_count_and_their_judgments_with_them(tmp_path: Path) -> None:
    data = Beir(path=write_folder(tmp_path, qrels=QRELS + "q2\td4\t1\n"), text="title").load()
    assert list(data.documents) == ["d1", "d2", "d4"]
    assert data.relevance == {"q1": {"d1": 3, "d2": 0}, "q2": {"d4": 1}}
    assert data.notes == ("documents without text left out: 1 (judged: 1)",)


def test_folder_in_which_no_document_has_text_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, corpus=[{"_id": f"d{number}", "title": "", "text": "only here"} for number in range(1, 5)])
    with pytest.raises(TaskError, match=r"corpus\.jsonl: none of its 4 documents has text in 'title'; choose other fields"):
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


def test_judged_pools_are_ranked_with_titles_and_texts_and_the_reason_is_stated(tmp_path: Path) -> None:
    task = Beir.from_folder(write_folder(tmp_path))
    assert (task.text, task.ranking, task.gain) == ("title text", "judged", "exponential")
    assert task.load().describe() == (
        f"beir:{tmp_path.name}: 2 queries, 4 documents; ranks each query's judged documents: "
        "1 of 2 queries have relevant and irrelevant documents judged"
    )


@pytest.mark.parametrize("grade", [0, -1])
def test_one_grade_of_zero_or_less_does_not_change_what_is_ranked(tmp_path: Path, grade: int) -> None:
    relevant = "q1\td1\t1\nq2\td3\t1\nq3\td4\t1\n"
    task = Beir.from_folder(write_folder(tmp_path, qrels=f"{relevant}q1\td2\t{grade}\n"))
    assert task == Beir(path=tmp_path)
    assert "ranks the full corpus" in task.load().describe()


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


def test_folder_whose_documents_are_all_judged_gives_only_the_queries_that_are_not_in_the_test(tmp_path: Path) -> None:
    write_folder(tmp_path, qrels=QRELS + "q1\td4\t0\n")
    spare = Beir(path=tmp_path).calibration_texts(10)
    assert (spare.queries, spare.documents) == (("spare query",), ())
    assert spare.note.startswith(f"every document of beir:{tmp_path.name} is judged")


@pytest.mark.parametrize(
    "qrels",
    [
        "query-id\tcorpus-id\trelevance\r\nq1\td1\t3\r\nq1\td2\t0\r\nq2\td3\t1\r\n",
        "\ufeffQuery_ID\tDoc ID\tLabel\nq1\td1\t3.0\nq1\td2\t0.0\nq2\td3\t1.0\n",
        "corpus-id\tscore\tquery-id\nd1\t3\tq1\nd2\t0\tq1\nd3\t1\tq2\n",
        "q1\tQ0\td1\t3\nq1\tQ0\td2\t-1\nq2\tQ0\td3\t1\n",
        "q1 0 d1 3\nq1 0 d2 0\n\nq2  0  d3  1\n",
        "qid iter docno rel\nq1 0 d1 3\nq1 0 d2 0\nq2 0 d3 1\n",
    ],
)
def test_judgments_are_read_in_the_forms_that_people_have(tmp_path: Path, qrels: str) -> None:
    write_folder(tmp_path)
    (tmp_path / "qrels" / "test.tsv").write_bytes(qrels.encode())
    assert Beir(path=tmp_path).load().relevance == {"q1": {"d1": 3, "d2": 0}, "q2": {"d3": 1}}


def test_ids_may_be_whole_numbers_or_contain_spaces(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_bytes(b'\xef\xbb\xbf{"_id": 7, "text": "oak desk"}\r\n{"id": "d 8", "text": "lamp"}\r\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "q 1", "text": "desk"}\n')
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("q 1\t7\t1\nq 1\td 8\t0\n")
    data = Beir(path=tmp_path).load()
    assert (data.documents, data.relevance) == ({"7": "oak desk", "d 8": "lamp"}, {"q 1": {"7": 1, "d 8": 0}})


def write_table(path: Path, records: list[dict[str, Any]]) -> None:
    if path.suffix == ".parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist(records), path)
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(records[0]), dialect="excel" if path.suffix == ".csv" else "excel-tab")
        writer.writeheader()
        writer.writerows(records)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_tables_are_read_like_json_lines(tmp_path: Path, suffix: str) -> None:
    expected = Beir(path=write_folder(tmp_path)).load()
    for stem, records in (("corpus", CORPUS), ("queries", QUERIES)):
        (tmp_path / f"{stem}.jsonl").unlink()
        write_table(tmp_path / f"{stem}{suffix}", records)
    (tmp_path / "qrels" / "test.tsv").unlink()
    rows = [line.split("\t") for line in QRELS.splitlines()]
    write_table(tmp_path / "qrels" / f"test{suffix}", [dict(zip(rows[0], row, strict=True)) for row in rows[1:]])
    data = Beir(path=tmp_path).load()
    assert (data.queries, data.documents, data.relevance) == (expected.queries, expected.documents, expected.relevance)


def test_lone_surrogate_is_named_with_file_and_line(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d1", "text": "fine"}\n{"_id": "d2", "text": "half \\ud83d of it"}\n')
    with pytest.raises(TaskError, match=r"corpus\.jsonl:2: character 5 is a lone surrogate.*'half \\ud83d of it'; write the whole"):
        Beir(path=tmp_path).load()


def test_bytes_that_are_not_utf8_are_named_with_file_and_line(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "queries.jsonl").write_bytes(b'{"_id": "q1", "text": "fine"}\n{"_id": "q2", "text": "caf\xe9"}\n')
    with pytest.raises(TaskError, match=r"queries\.jsonl:2: not UTF-8 .*save it as UTF-8"):
        Beir(path=tmp_path).load()


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        ("q1\td1\n", r"test\.tsv:1: found \['q1', 'd1'\]"),
        ("q1\td1\t1\nq1 d2 0\n", r"test\.tsv:2: found \['q1 d2 0'\]"),
        ("q1\td1\thigh\nq1\td2\t1\n", r"test\.tsv:1: found .*a whole score"),
        ("q1\td1\tnan\nq1\td2\t1\n", r"test\.tsv:1: found .*a whole score"),
        ("q1\td1\t1.5\n", r"test\.tsv:1: found .*a whole score"),
        ("query-id\tcorpus-id\tworth\nq1\td1\t1\n", r"test\.tsv:1: the header .* does not name query, document and grade"),
        ("q1 Q0 d1 1 0.7 run\n", r"test\.tsv:1: found .*TREC's query, iteration, document and grade"),
        ("q1\td1\t1\nquery-id\tcorpus-id\tscore\n", r"test\.tsv:2: found \['query-id'"),
        ("q1\td1\t31\n", r"a whole score of at most 30"),
        ("q1\td9\t1\n", r"judges document 'd9' for query 'q1', which is not in corpus.jsonl"),
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
        (b'{"_id": 7.5, "title": "x"}\n', r"corpus\.jsonl:1: found .*expected an object with _id"),
        (b'{"_id": "d1", "text": ["x"]}\n', r"corpus\.jsonl:1: text is .*expected a text"),
        (b'["d1"]\n', r"expected an object with _id"),
        (b'{"_id": "d1"}\n{"_id": "d1"}\n', r"corpus\.jsonl:2: duplicate id 'd1'"),
        (b'{"_id": "\xff"}\n', r"corpus\.jsonl:1: not UTF-8"),
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
    with pytest.raises(TaskError, match=r"corpus\.jsonl\.gz:\d+: (cannot be read|duplicate id 'd1')"):
        Beir(path=tmp_path).load()


def test_missing_split_names_those_that_are_there(tmp_path: Path) -> None:
    write_folder(tmp_path)
    with pytest.raises(TaskError, match=r"qrels/dev\.tsv: no such file; available splits: test"):
        Beir(path=tmp_path, split="dev").load()


def test_split_cannot_leave_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split"):
        Beir(path=tmp_path, split="../../etc/passwd")


def test_missing_corpus_says_what_a_beir_folder_holds(tmp_path: Path) -> None:
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "x"}\n')
    with pytest.raises(TaskError, match=r"has no corpus file \(\.jsonl, "):
        Beir(path=tmp_path).load()


@given(st.binary(max_size=200))
def test_any_bytes_as_judgments_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = write_folder(tmp_path_factory.mktemp("beir"))
    (folder / "qrels" / "test.tsv").write_bytes(content)
    # What is not judgments is refused, never a traceback.
    with suppress(TaskError):
        assert Beir(path=folder).load().relevance
