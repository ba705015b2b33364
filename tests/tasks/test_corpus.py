"""Corpora: lines of text or JSON, plain or gzipped, with the line of every fault."""

import gzip
from pathlib import Path

import pytest

from optbench.errors import TaskError
from optbench.tasks.corpus import find_corpus, read_corpus


def test_each_form_gives_its_texts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n  two  \n")
    (tmp_path / "b.jsonl").write_text('{"title": "Lamp", "text": "red"}\n\n"three"\n{"_id": "1", "text": "four"}\n')
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress("fünf\n".encode()))
    (tmp_path / "beir").mkdir()
    (tmp_path / "beir" / "corpus.jsonl.gz").write_bytes(gzip.compress(b'{"_id": "d", "title": "", "text": "six"}\n'))
    (tmp_path / "d.csv").write_bytes(b'\xef\xbb\xbfid,title,text\r\n1,Desk,"oak, large"\r\n2,,\r\n')
    names = ("a.txt", "b.jsonl", "c.txt.gz", "d.csv", "beir")
    expected = [["one", "two"], ["Lamp red", "three", "four"], ["fünf"], ["Desk oak, large"], ["six"]]
    assert [list(read_corpus(tmp_path / name)) for name in names] == expected
    assert find_corpus(tmp_path / "beir") == tmp_path / "beir" / "corpus.jsonl.gz"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "one"}\n{"body": "two"}\n', r"a\.jsonl:2: found .*body.*; expected an object with text, or a JSON string"),
        ("a.jsonl", b'{"text": "one"}\n{"text": \n', r"a\.jsonl:2: not JSON: Expecting value"),
        ("a.jsonl", b"[1]\n", r"a\.jsonl:1: found \[1\]"),
        ("a.txt", b"one\n\xff\xfe\n", r"a\.txt:2: not UTF-8 \(invalid start byte at byte 0 of the line\)"),
        ("a.txt.gz", b"no gzip", r"a\.txt\.gz:1: cannot be read: Not a gzipped file"),
        ("a.jsonl", b'"fine"\n"half \\ud83d"\n', r"a\.jsonl:2: character 5 is a lone surrogate"),
        ("a.csv", b"id,body\n1,lamp\n", r"a\.csv:2: found .*expected an object with text"),
        ("a.csv", b"text\none,two\n", r"a\.csv:2: 2 cells, but the header has 1 \(text\)"),
        ("a.csv", b'text\n"one\n', r"a\.csv:2: unexpected end of data"),
        ("a.parquet", b"no parquet", r"a\.parquet: row 1: cannot be read as Parquet"),
        ("a.pdf", b"", r"a\.pdf: a \.pdf file; expected a \.txt file"),
    ],
)
def test_fault_names_the_file_and_the_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskError, match=message):
        list(read_corpus(tmp_path / name))


def test_folder_without_documents_and_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"a folder without corpus\.jsonl"):
        find_corpus(tmp_path)
    with pytest.raises(TaskError, match="no such file or folder"):
        find_corpus(tmp_path / "absent.txt")
