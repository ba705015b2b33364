from pathlib import Path

import pytest

from optbench.errors import TaskError
from optbench.tasks import load_tasks, parse_task
from optbench.tasks.sts import Sts


def write(tmp_path: Path, content: str, name: str = "stsb-de-test.csv") -> Path:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    return path


def test_pairs_and_scores_are_read_with_quoted_commas(tmp_path: Path) -> None:
    data = Sts(path=write(tmp_path, '"A man, running",A man walks,2.5\nA cat,A dog,1\n')).load()
    assert data.first == ("A man, running", "A cat")
    assert data.second == ("A man walks", "A dog")
    assert data.scores == (2.5, 1.0)
    assert (data.name, data.language) == ("sts:stsb-de-test", "de")


def test_header_is_skipped_and_language_unknown_without_a_code(tmp_path: Path) -> None:
    data = Sts(path=write(tmp_path, "sentence1,sentence2,score\na,b,1\nc,d,2\n", "pairs.csv")).load()
    assert data.first == ("a", "c")
    assert data.language == "und"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b,1\nc,d\n", r":2: found \['c', 'd'\]"),
        ("a,b,1\nc,d,high\n", r":2: found"),
        ("a,b,1\nc,d,nan\n", r":2: found"),
        ("a,b,nan\nc,d,1\ne,f,2\n", r":1: found \['a', 'b', 'nan'\]"),
        ("a,b,high\nc,d,1\ne,f,2\n", r":1: found"),
        ("a,b,1\nx,c,d,2\n", r":2: found"),
        ("a,b,1\nc,d,1\n", r"2 pairs with fewer than two different scores"),
        ("", r"0 pairs"),
        ('a,"b,1\n', r"unexpected end of data"),
    ],
)
def test_broken_lines_are_named(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Sts(path=write(tmp_path, content)).load()


def test_no_sentence_is_left_to_calibrate_on(tmp_path: Path) -> None:
    spare = Sts(path=write(tmp_path, "a,b,1\nc,d,2\n")).calibration_texts(5)
    assert (spare.queries, spare.documents, spare.note) == ((), (), "every sentence of sts:stsb-de-test is judged")


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("\ufeffa,b,1\r\nc,d,2\r\n", "bom.csv"),
        ("\ufeffsentence1,sentence2,score\na,b,1\nc,d,2\n", "header.csv"),
        ("split,Score,Sentence 1,Sentence 2\ntest,1,a,b\ntest,2.0,c,d\n", "any-order.csv"),
        ("sentence1\tsentence2\tlabel\na\tb\t1\nc\td\t2\n", "tabs.tsv"),
    ],
)
def test_files_are_read_in_the_forms_that_people_have(tmp_path: Path, content: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode())
    data = Sts(path=path).load()
    assert (data.first, data.second, data.scores) == (("a", "c"), ("b", "d"), (1.0, 2.0))


def test_pairs_without_text_are_left_out_with_a_count(tmp_path: Path) -> None:
    data = Sts(path=write(tmp_path, "a,b,1\n,d,2\ne,f,3\n")).load()
    assert (data.first, data.notes) == (("a", "e"), ("pairs without text left out: 1",))


def test_folder_is_a_task_of_several_languages(tmp_path: Path) -> None:
    for language in ("en", "de"):
        write(tmp_path, "a,b,1\nc,d,2\n", f"stsb-{language}-test.csv")
    data = load_tasks([Sts(path=tmp_path)])
    assert [(each.name, each.language, each.weight) for each in data] == [("sts:stsb-de-test", "de", 0.5), ("sts:stsb-en-test", "en", 0.5)]
    assert parse_task(str(tmp_path)) == Sts(path=tmp_path)
