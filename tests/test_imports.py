"""Who may import whom, what an import may load, and how long a file may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "optbench"
LINES_MAX = 400
HEAVY = (
    "torch",
    "transformers",
    "openvino",
    "nncf",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "onnx_ir",
    "ir_measures",
    "scipy",
    "neural_compressor",
    "altair",
    "vl_convert",
    "jinja2",
    "mteb",
    "sentence_transformers",
    "datasets",
    "accelerate",
)

FOUNDATION = {"errors", "artifact", "machine"}
MODEL = {"checkpoint", "tokenizer", "torch_model", "worker"}
BASE = {"base_model", "base_hub", "base_layout", "base_source", "random_tokenizer", "random_weights", "safetensors_file"}
RUN = {
    "recipe",
    "recipe_file",
    "plan",
    "record",
    "verdict",
    "boxes",
    "encoder",
    "steps",
    "engines",
    "measure",
    "tasks",
    *FOUNDATION,
    *MODEL,
    "base_model",
}
# A module, or every module of a folder, and what of optbench it may import: DESIGN's table, in its order.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "artifact": {"errors"},
    "machine": {"errors"},
    "worker": {"errors"},
    "boxes": {"errors", "machine"},
    "environments": {"errors", "machine"},
    "checkpoint": {"artifact", "errors"},
    "torch_model": {"checkpoint", *FOUNDATION},
    "tokenizer": {"checkpoint", "artifact", "errors"},
    "tasks": {"tasks", "errors"},
    "steps": {"steps", "tasks", "safetensors_file", *FOUNDATION, *MODEL},
    "engines": {"engines", *FOUNDATION, *MODEL},
    "encoder": {"engines", "artifact", "checkpoint", "tokenizer", "errors"},
    **dict.fromkeys(BASE, BASE | {"checkpoint"} | FOUNDATION),
    "recipe": {"steps", "engines", "tasks", "base_model", "measure.stability", "machine", "artifact", "errors"},
    "recipe_file": {"recipe", "artifact", "errors"},
    "plan": {"recipe", "steps", "base_model", *FOUNDATION},
    "measure": {"measure", "encoder", "engines", "tasks", *FOUNDATION, *MODEL},
    "record": {"measure", "recipe", "plan", "steps.base", *FOUNDATION},
    "verdict": {"record", "measure", "recipe", "plan", "boxes", "errors"},
    "stages": RUN,
    "layer_times": RUN | {"stages"},
    "evidence": RUN | {"stages"},
    "tune": RUN | {"tune", "stages", "evidence"},
    "report": {"report", "record", "verdict", "boxes", "environments", "measure", "artifact", "errors"},
    "graph_trust": set(),
    "audit": {"artifact", "checkpoint", "graph_trust", "record", "errors"},
    "loaders": {"loaders", "artifact", "checkpoint", "encoder", "environments", "tasks", "report.table", "errors"},
    "extending": {"artifact", "steps", "machine", "errors"},
    "publish": {"publish", "audit", "record", "verdict", "artifact", "machine", "errors"},
    "comparison": {"record", "verdict", "measure", "tune", "report", "machine", "errors"},
    "gate": {"comparison", "record", "recipe", "machine", "verdict", "measure", "report", "errors"},
    "reference": {"recipe", "steps"},
    "starting": {"recipe_file", *BASE, "checkpoint", "errors"},
    "terminal": {"report"},
    "runner": RUN | {"stages", "layer_times", "evidence", "tune", "report.card"},
    "adhoc": RUN | {"stages", "evidence", "tune", "report", "runner", "tokenizer"},
}
# The public names, and the command line.
ANYTHING = {"", "__main__", "cli"}
# Within these folders the entries of the union stand side by side: none imports another.
UNIONS = ("steps", "engines", "tasks")


def module_name(path: Path) -> str:
    """`optbench/steps/__init__.py` is `steps`, `optbench/steps/base.py` is `steps.base`, `optbench/__init__.py` is the empty name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(path: Path) -> set[str]:
    """The modules of optbench that a file names in an import, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; name the module in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    found = set()
    for name in names:
        head, _, rest = name.partition(".")
        if head == "optbench":
            # The last part may be a module or a name in one.
            found.add(rest if rest in MODULES else rest.rpartition(".")[0])
    return found


def home(name: str, table: dict[str, set[str]] | set[str]) -> str | None:
    """The longest entry of a table that is the module or a folder above it."""
    while name:
        if name in table:
            return name
        name = name.rpartition(".")[0]
    return None


@pytest.mark.parametrize("name", [name for name in MODULES if name and home(name, ANYTHING) is None])
def test_module_imports_only_what_its_row_allows(name: str) -> None:
    row = home(name, MAY_IMPORT)
    assert row is not None, f"optbench/{name} has no row in MAY_IMPORT: give it one that DESIGN's table allows"
    # The bare package holds the version only.
    wrong = sorted(each for each in imported(MODULES[name]) if each and home(each, MAY_IMPORT[row]) is None)
    assert not wrong, f"optbench.{name} imports {', '.join(wrong)}, which the row {row!r} does not allow"


@pytest.mark.parametrize("union", UNIONS)
def test_entries_of_a_union_do_not_import_each_other(union: str) -> None:
    entries = imported(MODULES[union]) - {f"{union}.base", union, "errors", "artifact"}
    assert entries, f"optbench/{union}/__init__.py imports no entry"
    for entry in sorted(entries):
        others = imported(MODULES[entry]) & (entries - {entry})
        assert not others, f"{entry} imports {', '.join(sorted(others))}; move what they share to a file of its own"


def test_every_row_is_of_a_module_that_exists() -> None:
    unknown = {row for row in MAY_IMPORT if row not in MODULES}
    assert not unknown


def written_files() -> list[Path]:
    folders = [ROOT / name for name in ("optbench", "tests", "bench")]
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def test_no_file_is_longer_than_the_limit() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in written_files()}
    long = [f"{path.relative_to(ROOT)}: {lines} lines" for path, lines in lengths.items() if lines > LINES_MAX]
    assert lengths
    assert not long, f"longer than {LINES_MAX} lines: {'; '.join(long)}; split them by what they do"


def test_no_assert_in_the_library() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
    ]
    assert not found, f"{', '.join(found)}: python -O drops them; raise an error of optbench.errors"


def loaded_by(program: str) -> list[str]:
    """The heavy libraries that are loaded once a program has run in a fresh interpreter."""
    end = f"\nimport sys\nprint(*(name for name in {HEAVY!r} if name in sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program + end], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stderr.split()


def test_guard_sees_a_heavy_library() -> None:
    assert "onnx_ir" in loaded_by("import onnx_ir")


def test_no_module_of_optbench_loads_a_heavy_library_when_it_is_imported() -> None:
    names = [f"optbench.{name}".rstrip(".") for name in MODULES if name != "__main__"]
    lines = [
        "import importlib, sys",
        f"for name in {names!r}:",
        "    importlib.import_module(name)",
        f"    heavy = [each for each in {HEAVY!r} if sys.modules.get(each) is not None]",
        "    if heavy: sys.exit(f'importing {name} loads {heavy}')",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["check", "recipes/minilm-l6.yaml"], ["plan", "recipes/minilm-l6.yaml"], ["schema"]])
def test_command_that_only_reads_loads_no_heavy_library(arguments: list[str]) -> None:
    assert loaded_by(f"from optbench.cli import app\napp({arguments!r}, standalone_mode=False)") == []
