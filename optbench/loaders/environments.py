"""Pinned Python environments, for libraries that cannot be installed beside optbench.

pip creates each once, in a folder of the cache named after the hash of its pins. pip's own settings apply: an index, a proxy, a folder
of wheels (PIP_FIND_LINKS), or PyTorch's index of CPU builds (PIP_EXTRA_INDEX_URL) where pip would otherwise install a CUDA build.
"""

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from optbench.errors import MachineError
from optbench.machine.disk import free_disk
from optbench.machine.progress import Progress, silent

__all__ = ["ST5_ONNX", "ST6_OPENVINO", "PinnedEnvironment", "clean_variables", "find_environment", "make_environment"]

# Written last: an environment without it is incomplete.
MARKER = "installed.json"
# torch's CPU build, transformers and the engines, unpacked, and their wheels.
DISK_BYTES = 3_000_000_000


@dataclass(frozen=True)
class PinnedEnvironment:
    """Packages to install together, each with an exact version, and why they cannot be installed beside optbench."""

    name: str
    requirements: tuple[str, ...]
    reason: str

    @property
    def key(self) -> str:
        """The folder's name: other pins or another Python give another environment."""
        content = json.dumps([sys.implementation.cache_tag, sorted(self.requirements)])
        return f"{self.name}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


ST5_ONNX = PinnedEnvironment(
    "st5-onnx",
    (
        "sentence-transformers==5.7.0",
        "transformers==4.57.6",
        "optimum==2.1.0",
        "optimum-onnx==0.1.0",
        "onnxruntime==1.32.0",
        "torch==2.13.0",
    ),
    "optimum-onnx, which sentence-transformers uses for ONNX, requires transformers < 4.58",
)
ST6_OPENVINO = PinnedEnvironment(
    "st6-openvino",
    (
        "sentence-transformers==6.2.0",
        "transformers==5.5.4",
        "optimum-intel==2.1.0",
        "openvino==2026.4.1",
        "nncf==3.4.0",
        "torch==2.13.0",
    ),
    "optimum-intel, which sentence-transformers uses for OpenVINO, requires huggingface-hub < 1.22",
)


def clean_variables() -> dict[str, str]:
    """This process's environment variables, without those that show an interpreter packages outside its own environment."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}


def find_environment(environment: PinnedEnvironment, root: Path) -> Path | None:
    """The interpreter of an existing environment; None if there is none."""
    folder = root / environment.key
    python = folder / "bin" / "python"
    # The interpreter is a link, broken if the system's Python was replaced.
    return python if (folder / MARKER).is_file() and python.is_file() else None


def make_environment(environment: PinnedEnvironment, root: Path, progress: Progress = silent) -> Path:
    """The interpreter of an environment; creates the environment if it does not exist.

    `root` is the folder of all environments. If several processes ask at once, one creates it and the others wait. Start the
    interpreter with `clean_variables()`.

    Raises:
        MachineError: pip cannot install the packages (no network, no release for this Python), or the disk is full.
    """
    folder = root / environment.key
    root.mkdir(parents=True, exist_ok=True)
    progress(f"waiting for the environment {environment.name}", None)
    with FileLock(root / f".{environment.key}.lock"):
        if (found := find_environment(environment, root)) is not None:
            return found
        free_disk(root, DISK_BYTES, f"the environment {environment.name}")
        shutil.rmtree(folder, ignore_errors=True)
        try:
            progress(f"installing {', '.join(environment.requirements)}", None)
            _install(environment, folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    return folder / "bin" / "python"


def _install(environment: PinnedEnvironment, folder: Path) -> None:
    # This interpreter's pip can install into another environment; unpacking a copy takes seconds.
    # Found by its metadata: with setuptools installed, find_spec("pip") replaces distutils, with a warning.
    with_pip = not any(importlib.metadata.distributions(name="pip"))
    try:
        venv.EnvBuilder(with_pip=with_pip, symlinks=True).create(folder)
    except (OSError, subprocess.CalledProcessError) as error:
        raise MachineError(
            f"{folder}: cannot create a virtual environment: {error}; install pip in this Python ({sys.executable} -m ensurepip)"
        ) from error
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip"] if with_pip else [sys.executable, "-m", "pip", "--python", python]
    pip += ["--disable-pip-version-check", "--no-input"]
    # One retry: without a network, pip's default of five takes a minute per package.
    done = _run([*pip, "install", "--quiet", "--retries", "1", *environment.requirements])
    if done.returncode != 0:
        raise MachineError(
            f"the environment {environment.name} cannot be installed: {_last_error(done.stderr)}; "
            f"it needs an index with {', '.join(environment.requirements)}: check the network and pip's settings"
        )
    installed = _run([*pip, "freeze"]).stdout.split("\n")
    document = {"requirements": environment.requirements, "installed": [line for line in installed if line]}
    (folder / MARKER).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=clean_variables())


def _last_error(stderr: str) -> str:
    """The last error message of pip, else its last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["no message from pip"])[-1]
