"""Python environments with pinned packages, for libraries that cannot be installed beside optbench.

Each is made by pip once, in the cache, and found there again by the hash of its pins. pip's own settings hold: an index, a
proxy, a folder of wheels (PIP_FIND_LINKS), or PyTorch's index of CPU builds (PIP_EXTRA_INDEX_URL) where plain pip would bring
a CUDA build of torch.
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
from optbench.machine.progress import Progress

__all__ = ["ST5_ONNX", "ST6_OPENVINO", "PinnedEnvironment", "clean_variables", "find_environment", "make_environment"]

# Written last: an environment without it is one whose making was stopped.
MARKER = "installed.json"
# torch's CPU build, transformers and the engines unpacked, and the wheels on their way.
DISK_BYTES = 3_000_000_000


@dataclass(frozen=True)
class PinnedEnvironment:
    """A set of packages that are installed together, apart from optbench's own.

    Attributes:
        name: short, a file name: the beginning of its folder's name.
        requirements: as pip takes them, each with its exact version.
        reason: why they cannot lie beside optbench.
    """

    name: str
    requirements: tuple[str, ...]
    reason: str

    @property
    def key(self) -> str:
        """The folder's name: other pins, or another Python, give another environment."""
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
    "optimum-onnx, which sentence-transformers loads ONNX with, requires transformers < 4.58",
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
    "optimum-intel, which sentence-transformers loads OpenVINO with, requires huggingface-hub < 1.22",
)


def clean_variables() -> dict[str, str]:
    """This process's environment variables, without those that would let an interpreter find packages outside its own."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}


def find_environment(environment: PinnedEnvironment, root: Path) -> Path | None:
    """The interpreter of an environment that was made before; None where there is none."""
    folder = root / environment.key
    python = folder / "bin" / "python"
    # The interpreter is a link: it may lead nowhere once the system's Python was replaced.
    return python if (folder / MARKER).is_file() and python.is_file() else None


def make_environment(environment: PinnedEnvironment, root: Path, progress: Progress | None = None) -> Path:
    """The interpreter of an environment, which is made if it is not there yet.

    Several processes may ask at once: one makes it, the others wait.

    Args:
        environment: what it holds.
        root: the folder of all environments; made if need be.
        progress: told what is being done.

    Returns:
        The path of its python; start it with `clean_variables()`.

    Raises:
        MachineError: pip cannot install the packages (no network, no release for this Python), or the disk is full.
    """
    report = progress or (lambda _message, _share: None)
    folder = root / environment.key
    root.mkdir(parents=True, exist_ok=True)
    report(f"waiting for the environment {environment.name}", None)
    with FileLock(root / f".{environment.key}.lock"):
        if (found := find_environment(environment, root)) is not None:
            return found
        free_disk(root, DISK_BYTES, f"the environment {environment.name}")
        shutil.rmtree(folder, ignore_errors=True)
        try:
            report(f"installing {', '.join(environment.requirements)}", None)
            _install(environment, folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    return folder / "bin" / "python"


def _install(environment: PinnedEnvironment, folder: Path) -> None:
    # This interpreter's own pip serves another just as well, and a copy takes seconds to unpack.
    # Looked for by its metadata: where setuptools is, looking for the module itself replaces distutils, with a warning.
    with_pip = not any(importlib.metadata.distributions(name="pip"))
    try:
        venv.EnvBuilder(with_pip=with_pip, symlinks=True).create(folder)
    except (OSError, subprocess.CalledProcessError) as error:
        raise MachineError(
            f"{folder}: a virtual environment cannot be made: {error}; install pip in this Python ({sys.executable} -m ensurepip)"
        ) from error
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip"] if with_pip else [sys.executable, "-m", "pip", "--python", python]
    pip += ["--disable-pip-version-check", "--no-input"]
    # One retry: without a network pip would otherwise ask for a minute a package.
    done = _run([*pip, "install", "--quiet", "--retries", "1", *environment.requirements])
    if done.returncode != 0:
        raise MachineError(
            f"the environment {environment.name} cannot be installed: {_last_error(done.stderr)}; "
            f"it needs an index with {', '.join(environment.requirements)}: check the network, or pip's settings"
        )
    installed = _run([*pip, "freeze"]).stdout.split("\n")
    document = {"requirements": environment.requirements, "installed": [line for line in installed if line]}
    (folder / MARKER).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=clean_variables())


def _last_error(stderr: str) -> str:
    """What pip said last that is an error, else its last words."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["pip says nothing"])[-1]
