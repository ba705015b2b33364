"""A tiny base, students of it, and texts in the words that they know."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from optbench.artifact.folder import Artifact, seal
from optbench.artifact.manifest import Kind
from tests.conftest import WORDS


def draw_texts(count: int, seed: int = 0) -> list[str]:
    """Distinct texts of 2 to 9 known words."""
    generator = random.Random(seed)  # noqa: S311  # a draw, not a secret
    texts: dict[str, None] = {}
    while len(texts) < count:
        texts[" ".join(generator.choices(WORDS, k=generator.randint(2, 9)))] = None
    return list(texts)


@pytest.fixture(scope="session")
def make_student(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    """A factory of checkpoints whose layers are another's with noise of a given size: what a step that went too far would leave."""

    def make(base: Artifact, noise: float = 0.05) -> Artifact:
        import torch
        from safetensors.torch import load_file, save_file

        folder = tmp_path_factory.mktemp("student")
        shutil.copytree(base.path, folder / "staging", ignore=shutil.ignore_patterns("manifest.json"))
        generator = torch.Generator().manual_seed(1)
        tensors = load_file(base.main_file)
        for name, tensor in tensors.items():
            if "layer" in name and tensor.ndim == 2:
                tensors[name] = tensor + noise * torch.randn(tensor.shape, generator=generator)
        save_file(tensors, folder / "staging" / "model.safetensors", {"format": "pt"})
        return seal(folder / "staging", folder / "sealed", Kind.CHECKPOINT, "random")

    return make


@pytest.fixture
def no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and a network that refuses: what a library leaves or sends is seen."""
    import socket

    def refuse(*arguments: object) -> None:
        raise AssertionError(f"a connection to {arguments[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    folder = tmp_path / "current"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
