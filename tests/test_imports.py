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

# Modules may import these, but a command that reads text files only does not need them.
NOT_FOR_A_CHECK = ("numpy", "psutil", "httpx", "huggingface_hub", "filelock", "license_expression", "safetensors", "tokenizers")

# DESIGN's order: a room imports itself and the rooms before it, never one after it. There are no exceptions.
ROOMS = (
    "errors",
    "machine",
    "artifact",
    "model",
    "base",
    "tasks",
    "engines",
    "encoder",
    "steps",
    "recipe",
    "measure",
    "record",
    "run",
    "tune",
    "loaders",
    "report",
    "publish",
    "cli",
)
# The public names, and `python -m optbench`: they lie above every room.
TOP = ("__init__", "__main__")
# The registry in the __init__ of each room that can be extended. Its entries are siblings: none imports another.
REGISTRIES = {"tasks": "TASKS", "engines": "ENGINES", "steps": "STEPS", "loaders": "LOADERS", "publish": "DESTINATIONS"}


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


def test_every_module_lies_in_a_room() -> None:
    assert {name.split(".")[0] for name in MODULES if name and name != "__main__"} == set(ROOMS)
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"errors", "encoder", *TOP}


@pytest.mark.parametrize("name", [name for name in MODULES if name.split(".")[0] in ROOMS])
def test_module_imports_only_its_own_room_and_those_before_it(name: str) -> None:
    room = ROOMS.index(name.split(".", maxsplit=1)[0])
    # The bare package holds the version only.
    wrong = sorted(each for each in imported(MODULES[name]) if each and ROOMS.index(each.split(".")[0]) > room)
    assert not wrong, f"optbench.{name} imports {', '.join(wrong)}, which come after {ROOMS[room]!r} in ROOMS"


def test_every_room_says_what_it_is_for() -> None:
    folders = {path.parent for path in MODULES.values()} - {PACKAGE}
    silent = [str(folder.relative_to(ROOT)) for folder in folders if len(_docstring(folder / "__init__.py").splitlines()) < 3]
    assert not silent, f"{', '.join(silent)}: say in __init__.py what the room is for, what comes in and what goes out"


def _docstring(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text())) or "") if path.is_file() else ""


def entries_of(room: str, registry: str) -> set[str]:
    """The room's own modules that its registry names."""
    homes: dict[str, str] = {}
    used: set[str] = set()
    for node in ast.parse(MODULES[room].read_text()).body:
        if isinstance(node, ast.ImportFrom):
            homes |= {alias.name: (node.module or "").removeprefix("optbench.") for alias in node.names}
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value and any(ast.unparse(target) == registry for target in targets):
            used = {name.id for name in ast.walk(node.value) if isinstance(name, ast.Name)}
            if isinstance(node.value, ast.Call):  # of a Registry, which names modules
                used = {each.value for each in ast.walk(node.value) if isinstance(each, ast.Constant) and isinstance(each.value, str)}
                homes |= {name: f"{room}.{name}" for name in used}
    named = {homes.get(name, "") for name in used}
    return {name for name in named if name in MODULES and name.startswith(f"{room}.")}


@pytest.mark.parametrize(("room", "registry"), REGISTRIES.items())
def test_entries_of_a_registry_do_not_import_each_other(room: str, registry: str) -> None:
    entries = entries_of(room, registry)
    assert len(entries) > 1, f"optbench/{room}/__init__.py: {registry} names the entries {sorted(entries)}"
    for entry in sorted(entries):
        others = imported(MODULES[entry]) & (entries - {entry})
        assert not others, f"{entry} imports {', '.join(sorted(others))}; move what they share to a file of its own"


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
    end = f"\nimport sys\nprint(*(name for name in {(*HEAVY, *NOT_FOR_A_CHECK)!r} if name in sys.modules), file=sys.stderr)"
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


@pytest.mark.parametrize("arguments", [["--help"], ["check", "recipes/arctic-l.yaml"], ["schema"]])
def test_command_that_only_reads_a_recipe_loads_no_heavy_library(arguments: list[str]) -> None:
    assert loaded_by(f"from optbench.cli import app\napp({arguments!r}, standalone_mode=False)") == []


def test_plan_loads_no_framework() -> None:
    loaded = loaded_by("from optbench.cli import app\napp(['plan', 'recipes/minilm-l6.yaml'], standalone_mode=False)")
    assert not set(loaded) & set(HEAVY)
