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
        ("a,b,1\nx,c,d,2\n", r":2: found"),
        ("a,b,1\nc,d,1\n", r"2 pairs with fewer than two different scores"),
        ("", r"0 pairs"),
        ('a,"b,1\n', r"unexpected end of data"),
    ],
)
def test_broken_lines_are_named(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Sts(path=write(tmp_path, content)).load()


def test_calibration_is_refused_because_every_sentence_is_judged(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="none is left to calibrate on; choose another task"):
        Sts(path=write(tmp_path, "a,b,1\nc,d,2\n")).calibration_texts(5)


def test_folder_is_a_task_of_several_languages(tmp_path: Path) -> None:
    for language in ("en", "de"):
        write(tmp_path, "a,b,1\nc,d,2\n", f"stsb-{language}-test.csv")
    data = load_tasks([Sts(path=tmp_path)])
    assert [(each.name, each.language, each.weight) for each in data] == [("sts:stsb-de-test", "de", 0.5), ("sts:stsb-en-test", "en", 0.5)]
    assert parse_task(str(tmp_path)) == Sts(path=tmp_path)
