"""What the cache holds beside finished work: kept while it is of use, and swept after."""

import os
import time
from pathlib import Path

import pytest
from filelock import FileLock

from optbench.run.make import UNFINISHED_DAYS_MAX, sweep_unfinished
from optbench.run.plan import Cache


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path)


def leave_unfinished(cache: Cache, key: str, days: float, *, newest_days: float | None = None) -> Path:
    """What a killed training leaves, last touched so many days ago; its newest file later, where that is said."""
    folder = cache.unfinished / key
    checkpoint = folder / "checkpoints" / "checkpoint-20"
    checkpoint.mkdir(parents=True)
    weights = checkpoint / "trained.safetensors"
    for path in (folder / ".lock", weights):
        path.touch()
    for path in (folder / ".lock", weights, checkpoint, checkpoint.parent, folder):
        touched = time.time() - 24 * 60 * 60 * (newest_days if newest_days is not None and path == weights else days)
        os.utime(path, (touched, touched))
    return folder


def test_unfinished_training_is_swept_when_nothing_has_touched_it_for_long(cache: Cache) -> None:
    old = leave_unfinished(cache, "old", UNFINISHED_DAYS_MAX + 1)
    recent = leave_unfinished(cache, "recent", UNFINISHED_DAYS_MAX - 1)
    gone_on = leave_unfinished(cache, "gone-on", UNFINISHED_DAYS_MAX + 1, newest_days=1)
    sweep_unfinished(cache)
    assert not old.exists()
    assert (recent / "checkpoints" / "checkpoint-20" / "trained.safetensors").is_file()
    assert gone_on.is_dir()


def test_unfinished_training_that_a_run_is_at_is_not_swept(cache: Cache) -> None:
    folder = leave_unfinished(cache, "held", UNFINISHED_DAYS_MAX + 1)
    with FileLock(folder / ".lock"):
        # Taking the lock touches its file, which alone would keep the folder.
        touched = time.time() - 24 * 60 * 60 * (UNFINISHED_DAYS_MAX + 1)
        os.utime(folder / ".lock", (touched, touched))
        sweep_unfinished(cache)
        assert (folder / "checkpoints").is_dir()


def test_cache_without_unfinished_work_is_swept_of_nothing(cache: Cache) -> None:
    sweep_unfinished(cache)
    assert not cache.unfinished.exists()
