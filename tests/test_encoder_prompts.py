"""encode_query and encode_document prepend what sentence-transformers' methods of these names do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optbench.artifact.folder import Artifact, seal
from optbench.artifact.manifest import MANIFEST, Kind
from optbench.encoder import load


def resolved_by_sentence_transformers(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The prompt that each method would prepend, without embedding anything."""
    pytest.importorskip("sentence_transformers")
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(modules=[torch.nn.Identity()], device="cpu")
    # As before it has read a folder's config, which this model without a folder has skipped.
    model.prompts = dict(model._default_prompts)
    model._parse_model_config(config)
    model._validate_prompts()
    monkeypatch.setattr(model, "encode", lambda **given: model._resolve_prompt(given["prompt"], given["prompt_name"]) or "")
    return {"query": model.encode_query(["shoe"]), "document": model.encode_document(["shoe"])}


@pytest.mark.parametrize(
    "prompts",
    [
        {"query": "red ", "document": "blue "},
        {"query": "red ", "passage": "blue "},
        {"query": "red ", "corpus": "blue "},
        {"topic": "oak "},
        {"query": "red ", "document": "", "passage": "blue "},
        {},
    ],
    ids=str,
)
def test_prompts_are_resolved_as_sentence_transformers_does(
    make_artifact: Callable[..., Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompts: dict[str, str]
) -> None:
    config = {"prompts": prompts, "default_prompt_name": None}
    artifact = make_artifact(Kind.ONNX)
    shutil.copytree(artifact.path, tmp_path / "staging")
    (tmp_path / "staging" / MANIFEST).unlink()
    (tmp_path / "staging" / "config_sentence_transformers.json").write_text(json.dumps(config), encoding="utf-8")
    folder = seal(tmp_path / "staging", tmp_path / "sealed", artifact.kind, "random").path
    seen: list[str] = []
    with load(folder, threads=1) as encoder:
        monkeypatch.setattr(encoder, "encode", lambda _, name, **__: seen.append(encoder._prefix(name)))
        encoder.encode_query("shoe")
        encoder.encode_document("shoe")
    assert dict(zip(("query", "document"), seen, strict=True)) == resolved_by_sentence_transformers(config, monkeypatch)
