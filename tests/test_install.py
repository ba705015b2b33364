"""What works after `pip install optbench`, without the extra that builds artifacts.

The environment holds the wheel and links to exactly the distributions that it requires, directly or not: nothing else can be imported. CI
also installs the wheel from the package index.
"""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from optbench.artifact.folder import Artifact
from optbench.artifact.manifest import Kind
from optbench.machine.extras import EXTRAS
from tests.test_packaging import build

Run = Callable[..., "subprocess.CompletedProcess[str]"]

ROOT = Path(__file__).parent.parent
EXPORTED = ROOT / "exported" / "minilm-l6"


def required(name: str, extras: frozenset[str], found: dict[str, metadata.Distribution]) -> None:
    """Add a distribution's requirements to `found`, and theirs."""
    for line in metadata.distribution(name).requires or ():
        requirement = Requirement(line)
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in (*extras, "")):
            continue
        if requirement.name not in found or requirement.extras:
            found[requirement.name] = metadata.distribution(requirement.name)
            required(requirement.name, frozenset(requirement.extras), found)


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs Python in a fresh environment with the wheel and what it requires."""
    folder = tmp_path_factory.mktemp("light")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    site = folder / "venv" / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    with zipfile.ZipFile(build("wheel", folder)) as wheel:
        wheel.extractall(site)  # our own
    found: dict[str, metadata.Distribution] = {}
    required("optbench", frozenset(), found)
    for distribution in found.values():
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
        command = [str(python), *(str(argument) for argument in arguments)]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.fixture
def artifact(make_artifact: Callable[..., Artifact]) -> Path:
    """A tiny model, built with the extra."""
    return make_artifact(Kind.OPENVINO).path


def test_what_builds_and_trains_is_not_installed(light: Run) -> None:
    modules = (*EXTRAS["build"], *EXTRAS["train"])
    done = light("-c", f"from importlib.util import find_spec; print([name for name in {modules!r} if find_spec(name)])")
    assert done.stdout == "[]\n", done.stderr


def test_service_loads_and_embeds(light: Run, artifact: Path) -> None:
    done = light("-c", f"import optbench; print(optbench.load({str(artifact)!r}).encode(['running shoes', 'usb-c cable']).shape)")
    assert done.stdout == "(2, 32)\n", done.stderr


def test_artifact_is_reported_verified_and_pulled(light: Run, artifact: Path) -> None:
    for command in (["report", EXPORTED], ["verify", artifact], ["pull", artifact, "back"]):
        done = light("-m", "optbench", *command, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["command"] == command[0]


def test_artifact_is_measured(light: Run, artifact: Path) -> None:
    done = light("-m", "optbench", "measure", artifact, "--lengths", "8", "--rounds", "3", "--cache", "cache", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["command"] == "measure"


def test_apply_names_the_extra_in_one_line(light: Run) -> None:
    done = light("-m", "optbench", "apply", "minilm-l6", "--cache", "cache", "--output", "exported")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: optbench apply needs torch, transformers, ")
    assert line.endswith("run pip install 'optbench[build]'")
