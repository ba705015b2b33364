import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from optbench.errors import TaskError
from optbench.tasks import Task, parse_task
from optbench.tasks.beir import Beir
from optbench.tasks.retail import Retail
from optbench.tasks.sts import Sts
from optbench.tasks.xquadr import XquadR


def test_word_retail_is_the_embedded_task() -> None:
    assert parse_task("retail") == Retail()


def test_files_are_told_apart_by_their_ending(tmp_path: Path) -> None:
    for name in ("en.json", "pairs.csv"):
        (tmp_path / name).write_text("")
    assert parse_task(str(tmp_path / "en.json")) == XquadR(path=tmp_path / "en.json")
    assert parse_task(str(tmp_path / "pairs.csv")) == Sts(path=tmp_path / "pairs.csv")


def test_folder_with_a_corpus_is_a_beir_task(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl.gz").touch()
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("q1\td1\t1\n")
    assert parse_task(str(tmp_path)) == Beir(path=tmp_path)


@pytest.mark.parametrize(("name", "found"), [("folder", "with neither a corpus"), ("a.txt", r"a \.txt file"), ("gone", "no such file")])
def test_what_is_no_task_gets_a_list_of_what_is(tmp_path: Path, name: str, found: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.txt").touch()
    with pytest.raises(TaskError, match=rf"{found}.*; expected `retail`.*BEIR folder.*XQuAD-R.*\.csv"):
        parse_task(str(tmp_path / name))


def test_union_is_told_apart_by_its_tag_and_forbids_extras() -> None:
    adapter: TypeAdapter[Task] = TypeAdapter(Task)
    assert adapter.validate_python({"task": "beir", "path": "x", "gain": "exponential"}) == Beir(path=Path("x"), gain="exponential")
    with pytest.raises(ValidationError, match="Extra inputs"):
        adapter.validate_python({"task": "retail", "rankings": "full"})
    with pytest.raises(ValidationError, match="union_tag_invalid"):
        adapter.validate_python({"task": "no-such"})


def test_importing_tasks_and_measures_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'openvino', 'nncf', 'onnx', 'onnxruntime', 'onnxscript', 'onnx_ir', 'ir_measures', 'scipy'}"
    modules = "optbench.tasks, optbench.measure.accuracy, optbench.measure.fidelity, optbench.measure.statistics"
    code = f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
