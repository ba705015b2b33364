"""The torch engine: threads, bf16, and transformers kept quiet."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from optbench.artifact.folder import Artifact
from optbench.artifact.manifest import Kind
from optbench.engines import torch as engine_module
from optbench.engines.torch import Torch, _TorchSession
from optbench.errors import EngineError
from optbench.machine.cpu import read_machine

IDS, MASK = np.array([[4, 9, 11, 5], [7, 4, 0, 0]]), np.array([[1, 1, 1, 1], [1, 1, 0, 0]])


def test_each_session_runs_on_its_own_threads(make_artifact: Callable[..., Artifact]) -> None:
    before = torch.get_num_threads()
    try:
        one, two = (Torch(threads=threads).open(make_artifact(Kind.CHECKPOINT)) for threads in (1, 2))
        for session, threads in [(one, 1), (two, 2), (one, 1)]:
            session.embed(IDS, MASK)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_bf16_is_near_fp32_and_pooled_in_fp32(make_artifact: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    # Where the CPU has no bf16 products torch emulates them, slowly and as exactly.
    able = read_machine().model_copy(update={"flags": (*read_machine().flags, "avx512_bf16")})
    monkeypatch.setattr(engine_module, "read_machine", lambda: able)
    artifact = make_artifact(Kind.CHECKPOINT)
    reference = Torch(threads=1).open(artifact).embed(IDS, MASK)
    embedding = Torch(threads=1, inference_precision="bf16").open(artifact).embed(IDS, MASK)
    assert embedding.dtype == np.float32
    # Normalized in fp32: a bf16 norm would be off by up to 2^-9.
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, atol=1e-6)
    # bf16 keeps 8 bits: 2^-9 a rounding, a few tens of roundings deep; a wrong model is at 0.1 and more.
    distances = 1 - (embedding * reference).sum(axis=1)
    assert 1e-8 < distances.max() < 1e-2


def test_bf16_on_a_cpu_without_it_is_refused(make_artifact: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = read_machine().model_copy(update={"flags": ("avx2",)})
    monkeypatch.setattr(engine_module, "read_machine", lambda: plain)
    with pytest.raises(EngineError, match="no bf16 products, so torch would emulate them; set inference_precision to f32"):
        Torch(inference_precision="bf16").open(make_artifact(Kind.CHECKPOINT))


def test_loading_prints_nothing(minilm_checkpoint: Artifact, capfd: pytest.CaptureFixture[str]) -> None:
    # This checkpoint holds a tensor that transformers does not know, on which it reports in colors.
    Torch(threads=1).open(minilm_checkpoint).close()
    assert capfd.readouterr() == ("", "")


def test_closing_gives_the_weights_back(make_artifact: Callable[..., Artifact]) -> None:
    session = Torch(threads=1).open(make_artifact(Kind.CHECKPOINT))
    assert isinstance(session, _TorchSession)
    weight = weakref.ref(next(session._module.parameters()))
    gc.disable()
    try:
        session.close()
        assert weight() is None
    finally:
        gc.enable()


def test_broken_checkpoint_is_an_engine_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"torch cannot open it: .*config\.json: No such file"):
        Torch().open(Artifact(Kind.CHECKPOINT, tmp_path, "unsealed"))
