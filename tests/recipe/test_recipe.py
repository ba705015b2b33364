"""Recipes: the four that ship, and twenty kinds of broken ones, each with file, line, key and cure."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optbench.artifact.manifest import Kind
from optbench.errors import RecipeError
from optbench.machine.boxes import load_boxes
from optbench.recipe.load import load_recipe
from optbench.recipe.schema import recipe_schema

RECIPES = Path(__file__).parents[2] / "recipes"

GOOD = """\
name: tiny
base:
  source: path:somewhere
  license: MIT
  body:
    architecture: BertModel
    layers: 2
    hidden: 32
    heads: 4
    feed_forward: 64
    vocabulary: 21
    positions: 64
    type_vocabulary: 2
  pooling: mean
  normalize: true
  prompts: {query: "", document: ""}
  max_tokens: 64
targets:
  baseline_ms: 90
  latency_ms: 40
steps:
  - step: export_onnx
  - step: convert_openvino
  - step: quantize_static
workload:
  lengths: [8, 16]
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["gte-large", "solon-large", "arctic-l", "minilm-l6"])
def test_shipped_recipe_is_read(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    assert recipe.name == name
    assert recipe.steps[-1].gives in recipe.engine_for(recipe.steps[-1].gives).opens


@pytest.mark.parametrize(
    ("name", "parameters", "speedup"),
    [("gte-large", 335_142_400 - 512, 90 / 40), ("solon-large", 559_890_432, 90 / 40), ("arctic-l", 567_754_752, 90 / 35)],
)
def test_base_has_the_published_parameters_and_target(name: str, parameters: int, speedup: float) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    # gte-large publishes its 512 position ids as parameters too.
    pooler = 1024 * 1024 + 1024  # the published counts include the pooler head, which an encoder does not use
    assert recipe.base.body.parameters + pooler == parameters
    assert recipe.targets.speedup == pytest.approx(speedup)


def test_targets_are_the_limits_of_the_reference_box() -> None:
    box = next(box for box in load_boxes() if box.name == "i9")
    for name, limits in box.limits.items():
        targets = load_recipe(RECIPES / f"{name}.yaml").targets
        assert (targets.box, targets.baseline_ms, targets.latency_ms) == ("i9", limits.baseline_ms, limits.latency_ms)


BROKEN = {
    "unknown key": (("name: tiny", "name: tiny\nnaem: x"), 2, "naem", "did you mean name?"),
    "unknown nested key": (("  hidden: 32", "  hidden: 32\n    width: 3"), 9, "base.body.width", "unknown key"),
    "missing key": (("  license: MIT\n", ""), 2, "base.license", "missing; add it"),
    "wrong type": (("    layers: 2", "    layers: two"), 7, "base.body.layers", "'two' found"),
    "boolean for a number": (("    layers: 2", "    layers: 2.5"), 7, "base.body.layers", "2.5 found"),
    "number out of range": (("    layers: 2", "    layers: 0"), 7, "base.body.layers", "greater than or equal to 1"),
    "unknown choice": (("  pooling: mean", "  pooling: max"), 14, "base.pooling", "'mean' or 'cls'"),
    "unknown step": (("step: quantize_static", "step: quantise_static"), 24, "steps[2].step", "did you mean quantize_static?"),
    "step without name": (("  - step: quantize_static", "  - stop: quantize_static"), 24, "steps[2]", "add step"),
    "unknown step option": (
        ("step: quantize_static", "step: quantize_static\n    smooth_quant_alhpa: 0.5"),
        25,
        "steps[2].smooth_quant_alhpa",
        "did you mean",
    ),
    "step in the wrong place": (
        ("  - step: export_onnx\n  - step: convert_openvino\n", "  - step: convert_openvino\n"),
        22,
        "steps[0]",
        "takes onnx, but the base gives checkpoint; put export_onnx before it",
    ),
    "steps out of order": (
        ("  - step: convert_openvino\n  - step: quantize_static\n", "  - step: convert_openvino\n  - step: quantize_dynamic\n"),
        24,
        "steps[2]",
        "takes onnx, but the step before (convert_openvino) gives openvino; move it before steps[1]",
    ),
    "no steps": (
        ("steps:\n  - step: export_onnx\n  - step: convert_openvino\n  - step: quantize_static\n", "steps: []\n"),
        21,
        "steps",
        "at least 1 item",
    ),
    "half a target": (("  latency_ms: 40\n", ""), 18, "targets", "either baseline_ms with latency_ms, or speedup_min"),
    "two targets": (
        ("  latency_ms: 40\n", "  latency_ms: 40\n  speedup_min: 2\n"),
        18,
        "targets",
        "either baseline_ms with latency_ms, or",
    ),
    "hostile name": (("name: tiny", "name: ../../etc"), 1, "name", "lower-case letters"),
    "absolute name": (("name: tiny", "name: /tmp/x"), 1, "name", "lower-case letters"),
    "broken source": (("source: path:somewhere", "source: ftp:somewhere"), 3, "base.source", "hub:"),
    "duplicate length": (("lengths: [8, 16]", "lengths: [8, 8]"), 25, "workload", "list each length once"),
    "length beyond the model": (("lengths: [8, 16]", "lengths: [8, 600]"), 26, "workload.lengths", "base.max_tokens is 64"),
    "judged length not measured": (("lengths: [8, 16]", "lengths: [8, 16]\n  judged_lengths: [32]"), 25, "workload", "add them there"),
    "duplicate key": (("name: tiny", "name: tiny\nname: twice"), 2, "name", "duplicate key"),
    "not YAML": (("name: tiny", "name: [tiny"), 2, "top", "not YAML"),
    "mapping as a key": (("name: tiny", "? {name: {}}\n: x"), 1, "top", "write every key as plain text"),
    "tab indentation": (("  license: MIT", "\tlicense: MIT"), 4, "top", "not YAML"),
    "list for a mapping": (('  prompts: {query: "", document: ""}', "  prompts: [a]"), 16, "base.prompts", ""),
    "duplicate engine": (
        ("workload:", "engines:\n  - {engine: openvino}\n  - {engine: openvino}\nworkload:"),
        27,
        "engines[1]",
        "also in engines[0]; remove one",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_recipe_says_file_line_key_and_cure(kind: str, tmp_path: Path) -> None:
    (old, new), line, key, cure = BROKEN[kind]
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(RecipeError) as raised:
        load_recipe(path)
    first = str(raised.value).splitlines()[0]
    assert first.startswith(f"{path}:{line} {key}"), first
    assert cure in first, first


def test_good_recipe_is_good(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    assert [step.step for step in recipe.steps] == ["export_onnx", "convert_openvino", "quantize_static"]
    assert recipe.engine_for(Kind.ONNX).engine == "onnxruntime"


def test_every_problem_is_listed_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("layers: 2", "layers: 0").replace("pooling: mean", "pooling: max").replace("name: tiny", "name: Tiny")
    with pytest.raises(RecipeError) as raised:
        load_recipe(write(tmp_path, text))
    assert [re.search(r":(\d+) ", line)[1] for line in str(raised.value).splitlines()] == ["1", "7", "14"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "cannot be read"),
        (lambda path: path.mkdir(), "cannot be read"),
        (lambda path: path.write_bytes(b"name: \xff\xfe"), "not UTF-8"),
        (lambda path: path.write_bytes(b"#" * 2_000_000), "larger than"),
        (lambda path: path.write_bytes(b""), "top"),
        (lambda path: path.write_text("a: &a [*a]"), "unknown key"),
        (lambda path: path.write_text("a: " + "[" * 5000), "top"),
    ],
)
def test_unreadable_file_is_one_clear_error(make: object, said: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    make(path)  # type: ignore[operator]
    with pytest.raises(RecipeError, match=re.escape(said)):
        load_recipe(path)


def test_alias_bomb_is_refused(tmp_path: Path) -> None:
    text = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdef", "bcdefg", strict=True)
    )
    with pytest.raises(RecipeError, match="more than 20000 entries after aliases are expanded"):
        load_recipe(write(tmp_path, text))


@given(st.binary(max_size=200))
def test_any_bytes_give_a_recipe_error_and_nothing_else(content: bytes) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        file.write(content)
        file.flush()
        with pytest.raises(RecipeError):
            load_recipe(Path(file.name))


@given(st.integers(0, len(GOOD)), st.text(max_size=8))
def test_any_damage_to_a_good_recipe_is_read_or_refused(position: int, inserted: str) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8", errors="surrogatepass") as file:
        file.write(GOOD[:position] + inserted + GOOD[position:])
        file.flush()
        try:
            load_recipe(Path(file.name))
        except RecipeError as error:
            assert re.match(r".+\.yaml:\d+ ", str(error))  # noqa: PT017


def test_hash_ignores_comments_and_sees_options(tmp_path: Path) -> None:
    plain = load_recipe(write(tmp_path, GOOD)).sha256
    assert load_recipe(write(tmp_path, "# a comment\n" + GOOD)).sha256 == plain
    assert load_recipe(write(tmp_path, GOOD.replace("latency_ms: 40", "latency_ms: 41"))).sha256 != plain


def test_schema_describes_every_step_and_engine() -> None:
    schema = json.dumps(recipe_schema())
    for word in (
        "export_onnx",
        "fuse_graph",
        "quantize_static",
        "quantize_dynamic",
        "compress_weights",
        "onnxruntime",
        "openvino",
        "torch",
    ):
        assert f'"{word}"' in schema


def test_check_loads_nothing_heavy() -> None:
    code = (
        "import sys; from pathlib import Path; from optbench.recipe.load import load_recipe\n"
        f"load_recipe(Path({str(RECIPES / 'arctic-l.yaml')!r}))\n"
        "heavy = {'torch', 'transformers', 'openvino', 'nncf', 'onnx', 'onnxruntime', 'onnxscript', 'onnx_ir', 'scipy', 'ir_measures'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_recipe_knows_the_folder_of_its_file_and_its_hash_does_not(tmp_path: Path) -> None:
    loaded = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        loaded.append(load_recipe(write(tmp_path / name, GOOD)))
    assert [recipe.folder for recipe in loaded] == [tmp_path / "here", tmp_path / "there"]
    assert loaded[0].sha256 == loaded[1].sha256
    assert loaded[0] == loaded[1]
    assert len(set(loaded)) == 1
    assert str(tmp_path) not in loaded[0].model_dump_json()
