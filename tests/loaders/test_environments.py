"""Pinned environments: created once from their pins, found again, and created again after an interruption."""

import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from optbench.errors import MachineError
from optbench.loaders import environments
from optbench.loaders.environments import (
    MARKER,
    ST5_ONNX,
    ST6_OPENVINO,
    PinnedEnvironment,
    clean_variables,
    find_environment,
    make_environment,
)


def write_wheel(folder: Path, name: str, version: str) -> None:
    """The smallest wheel that pip installs: one module that knows its version."""
    info = f"{name}-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", f"VERSION = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PinnedEnvironment:
    """One package, from a folder: no index is asked."""
    write_wheel(tmp_path / "wheels", "pinned_thing", "1.2")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return PinnedEnvironment("thing", ("pinned-thing==1.2",), "a test")


def test_environment_holds_its_pins_apart_and_is_made_once(
    pins: PinnedEnvironment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, said = tmp_path / "environments", []
    assert find_environment(pins, root) is None
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    python = make_environment(pins, root, lambda message, _share: said.append(message))
    program = "import pinned_thing, importlib.util as u; print(pinned_thing.VERSION, u.find_spec('optbench'), u.find_spec('numpy'))"
    done = subprocess.run([python, "-c", program], env=clean_variables(), capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split() == ["1.2", "None", "None"]
    assert any("pinned-thing==1.2" in message for message in said)
    marker = root / pins.key / MARKER
    assert json.loads(marker.read_text())["installed"] == ["pinned_thing==1.2"]

    def fail(*_: object) -> None:
        pytest.fail("it was there already")

    monkeypatch.setattr(environments, "_install", fail)
    assert make_environment(pins, root) == python == find_environment(pins, root)
    marker.unlink()
    assert find_environment(pins, root) is None


def test_missing_package_is_named_and_nothing_is_left(pins: PinnedEnvironment, tmp_path: Path) -> None:
    missing = PinnedEnvironment("other", (*pins.requirements, "no-such-thing==9"), "a test")
    root = tmp_path / "environments"
    with pytest.raises(MachineError, match=r"other cannot be installed: No matching distribution found for no-such-thing==9; .* network"):
        make_environment(missing, root)
    assert not (root / missing.key).exists()
    assert find_environment(missing, root) is None


def test_interrupted_making_leaves_nothing(pins: PinnedEnvironment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_: object, folder: Path) -> None:
        folder.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(environments, "_install", stop)
    with pytest.raises(KeyboardInterrupt):
        make_environment(pins, tmp_path / "environments")
    assert not (tmp_path / "environments" / pins.key).exists()


def test_key_follows_the_pins_and_not_their_order() -> None:
    turned = PinnedEnvironment(ST5_ONNX.name, ST5_ONNX.requirements[::-1], "")
    other = PinnedEnvironment(ST5_ONNX.name, (*ST5_ONNX.requirements[1:], "sentence-transformers==5.6.0"), "")
    assert turned.key == ST5_ONNX.key
    assert len({ST5_ONNX.key, ST6_OPENVINO.key, other.key}) == 3


@pytest.mark.parametrize("environment", [ST5_ONNX, ST6_OPENVINO], ids=lambda environment: str(environment.name))
def test_every_requirement_has_one_exact_version(environment: PinnedEnvironment) -> None:
    assert all(requirement.count("==") == 1 for requirement in environment.requirements)
