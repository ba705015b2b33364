"""A checkpoint folder, as people have them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from optbench.artifact.folder import Artifact


@pytest.fixture
def folder(tmp_path: Path, make_checkpoint: Callable[..., Artifact]) -> Path:
    """A checkpoint folder that a test may change."""
    copy = tmp_path / "model"
    shutil.copytree(make_checkpoint().path, copy)
    (copy / "manifest.json").unlink()
    return copy
