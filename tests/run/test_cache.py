"""Unfinished work in the cache: kept while a run may resume from it, and removed after."""

import os
import time
from pathlib import Path

import pytest
from filelock import FileLock

from optbench.run.cache import UNFINISHED_DAYS_MAX, Cache
from tests.run.runs import leave_unfinished


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path)


def test_unfinished_training_is_removed_after_a_month_without_a_change(cache: Cache) -> None:
    old = leave_unfinished(cache, "old", UNFINISHED_DAYS_MAX + 1)
    recent = leave_unfinished(cache, "recent", UNFINISHED_DAYS_MAX - 1)
    resumed = leave_unfinished(cache, "resumed", UNFINISHED_DAYS_MAX + 1, newest_days=1)
    cache.sweep_unfinished()
    assert not old.exists()
    assert (recent / "checkpoints" / "checkpoint-20" / "trained.safetensors").is_file()
    assert resumed.is_dir()


def test_unfinished_training_that_a_run_holds_is_kept(cache: Cache) -> None:
    folder = leave_unfinished(cache, "held", UNFINISHED_DAYS_MAX + 1)
    with FileLock(folder / ".lock"):
        # Taking the lock touches its file, which alone would keep the folder.
        touched = time.time() - 24 * 60 * 60 * (UNFINISHED_DAYS_MAX + 1)
        os.utime(folder / ".lock", (touched, touched))
        cache.sweep_unfinished()
        assert (folder / "checkpoints").is_dir()


def test_sweeping_a_cache_without_unfinished_work_does_nothing(cache: Cache) -> None:
    cache.sweep_unfinished()
    assert not cache.unfinished.exists()


def test_whatever_a_killed_run_was_writing_is_removed(cache: Cache) -> None:
    for left in (cache.staging / "4711-abc", cache.embeddings / "staging-abc", cache.root / "staging-base-abc"):
        left.mkdir(parents=True)
        (left / "weights").write_text("half")
    kept = cache.artifact("key")
    kept.mkdir(parents=True)
    with cache.stage() as mine:
        cache.sweep_staging()
        assert mine.is_dir()
    assert kept.is_dir()
    assert not [path for path in cache.root.rglob("*") if path.name == "weights"]
