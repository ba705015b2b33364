"""The cache: where finished work is kept, and what is cleaned up there."""

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from optbench.errors import MachineError
from optbench.machine.staging import STAGING, staging_folder, sweep_staging

__all__ = ["UNFINISHED_DAYS_MAX", "Cache"]

logger = logging.getLogger(__name__)

# An interrupted training resumes within days, or its recipe or a library has changed and its key never comes up again. Its folder may
# hold several times the model's size.
UNFINISHED_DAYS_MAX = 30
LOCK = ".lock"


@dataclass(frozen=True)
class Cache:
    """The cache folder. Any of its contents may be deleted at any time: they are made again."""

    root: Path

    @property
    def artifacts(self) -> Path:
        """Sealed artifacts, one folder a key."""
        return self.root / "artifacts"

    @property
    def embeddings(self) -> Path:
        """Vectors by content hash."""
        return self.root / "embeddings"

    @property
    def staging(self) -> Path:
        """Folders that are being filled."""
        return self.root / "staging"

    @property
    def layer_times(self) -> Path:
        """Latency of a body's layers in ms, one JSON file a key."""
        return self.root / "layer_times"

    @property
    def unfinished(self) -> Path:
        """What interrupted steps resume from, one folder a key; removed after `UNFINISHED_DAYS_MAX` days without a change."""
        return self.root / "unfinished"

    @property
    def environments(self) -> Path:
        """Python environments with pinned packages, for libraries that cannot be installed beside optbench."""
        return self.root / "environments"

    def artifact(self, key: str) -> Path:
        """The artifact of a key, present or not."""
        return self.artifacts / key

    def report(self, key: str) -> Path:
        """What the step of a key reported when it ran, present or not."""
        return self.root / "reports" / f"{key}.json"

    def conformance(self, key: str) -> Path:
        """How a base compared with its own libraries, present or not."""
        return self.root / "conformance" / f"{key}.json"

    def has(self, key: str) -> bool:
        """Whether a step's artifact and report are both present; neither is verified here."""
        return self.artifact(key).is_dir() and self.report(key).is_file()

    @contextmanager
    def stage(self) -> Iterator[Path]:
        """An empty folder in the cache, removed at the end."""
        with staging_folder(self.staging, "") as folder:
            yield folder

    @contextmanager
    def resume_folder(self, key: str, label: str) -> Iterator[Path]:
        """The folder that the step of a key resumes from, locked; the kernel frees the lock however the process ends.

        Raises:
            MachineError: another run is making the same artifact.
        """
        folder = self.unfinished / key
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(folder / LOCK).acquire(timeout=0)
        except Timeout:
            raise MachineError(f"{label}: another run is making this artifact in {self.root}; wait until it ends, then run again") from None
        with lock:
            yield folder

    def sweep_staging(self) -> None:
        """Remove the staging folders that killed runs left anywhere in the cache."""
        sweep_staging(self.staging, "")
        sweep_staging(self.embeddings, STAGING)
        sweep_staging(self.root, STAGING)  # of bases

    def sweep_unfinished(self) -> None:
        """Remove resume folders that nothing has changed for `UNFINISHED_DAYS_MAX` days.

        Call it after a run has made its steps: earlier, it could remove what that run would resume from.
        """
        oldest = time.time() - UNFINISHED_DAYS_MAX * 24 * 60 * 60
        for folder in self.unfinished.glob("*"):
            with suppress(OSError, Timeout):  # another run has just removed it, or is using it
                if max(path.stat().st_mtime for path in (folder, *folder.rglob("*"))) < oldest:
                    with FileLock(folder / LOCK, timeout=0):
                        logger.info("%s: not resumed for %d days; removed", folder, UNFINISHED_DAYS_MAX)
                        shutil.rmtree(folder, ignore_errors=True)
