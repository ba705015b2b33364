import json
from pathlib import Path
from typing import Any

import pytest

from optbench.errors import TaskError
from optbench.tasks import judged_texts, load_tasks, parse_task
from optbench.tasks.xquadr import XquadR

CONTEXT = "Rome has seven hills. Paris has one river. Nobody counted. Rome has seven hills."


def make_document() -> dict[str, Any]:
    paragraph = {
        "context": CONTEXT,
        "sentence_breaks": [[0, 21], [22, 42], [43, 58], [59, 80]],
        "qas": [
            {"id": "a", "question": "How many hills?", "answers": [{"answer_start": 63, "text": "seven"}]},
            {"id": "b", "question": "Which city has one river?", "answers": [{"answer_start": 22, "text": "Paris"}]},
        ],
    }
    return {"data": [{"title": "cities", "paragraphs": [paragraph]}], "version": "1.1"}


def write(folder: Path, document: Any) -> Path:
    path = folder / "en.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_sentence_in_which_the_answer_starts_is_relevant_and_copies_are_one_candidate(tmp_path: Path) -> None:
    data = XquadR(path=write(tmp_path, make_document())).load()
    assert sorted(data.documents.values()) == ["Nobody counted.", "Paris has one river.", "Rome has seven hills."]
    found = {data.queries[query]: data.documents[next(iter(judged))] for query, judged in data.relevance.items()}
    assert found == {"How many hills?": "Rome has seven hills.", "Which city has one river?": "Paris has one river."}
    assert (data.name, data.language, data.ranking) == ("xquadr:en", "en", "full")


def test_calibration_uses_sentences_that_answer_nothing(tmp_path: Path) -> None:
    spare = XquadR(path=write(tmp_path, make_document())).calibration_texts(10)
    assert spare.documents == ("Nobody counted.",)
    assert spare.queries == ("Nobody counted.",)
    assert "answer no question" in spare.note


def test_plain_squad_without_sentence_breaks_is_refused_by_paragraph(tmp_path: Path) -> None:
    document = make_document()
    del document["data"][0]["paragraphs"][0]["sentence_breaks"]
    with pytest.raises(TaskError, match=r"data\[0\]\.paragraphs\[0\]: KeyError: 'sentence_breaks'; expected SQuAD JSON whose paragraphs"):
        XquadR(path=write(tmp_path, document)).load()


def test_answer_outside_every_sentence_is_refused(tmp_path: Path) -> None:
    document = make_document()
    document["data"][0]["paragraphs"][0]["qas"][1]["answers"][0]["answer_start"] = 900
    with pytest.raises(TaskError, match="the answer to question 'b' starts in no sentence"):
        XquadR(path=write(tmp_path, document)).load()


@pytest.mark.parametrize("document", ["{", "[]", '{"data": 3}', '{"data": []}', '{"data": [{"paragraphs": [{"context": null}]}]}'])
def test_what_is_not_squad_json_is_refused(tmp_path: Path, document: str) -> None:
    with pytest.raises(TaskError, match=r"en\.json: .*SQuAD JSON whose paragraphs have sentence_breaks"):
        XquadR(path=write(tmp_path, document)).load()


def test_folder_is_a_task_of_several_languages(tmp_path: Path) -> None:
    for language in ("en", "de"):
        (tmp_path / f"{language}.json").write_text(json.dumps(make_document()))
    task = XquadR(path=tmp_path, weight=4.0)
    data = load_tasks([task, XquadR(path=tmp_path / "en.json")])  # English is there twice and read once
    assert [(each.name, each.language, each.weight) for each in data] == [("xquadr:de", "de", 2.0), ("xquadr:en", "en", 2.0)]
    spare = task.calibration_texts(2)
    assert spare.documents == ("Nobody counted.", "Nobody counted.")  # one a language
    assert judged_texts([task]).find_query("how many hills?") == "xquadr:en"
    assert parse_task(str(tmp_path)) == XquadR(path=tmp_path)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("old", "new"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, make_document())
    with pytest.raises(TaskError, match="two different tasks are called xquadr:en; rename the file or folder of one"):
        load_tasks([XquadR(path=tmp_path / folder / "en.json") for folder in ("old", "new")])


def test_folder_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"contains no \.json file; expected SQuAD JSON"):
        load_tasks([XquadR(path=tmp_path)])
