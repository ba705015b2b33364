"""Folders that are filled before they are moved into place."""

import subprocess
import sys
from pathlib import Path

import pytest

from optbench.machine.staging import staging_folder, sweep_staging


def test_folder_and_its_lock_are_gone_at_the_end(tmp_path: Path) -> None:
    with staging_folder(tmp_path / "new", ".staging-") as folder:
        (folder / "weights").write_text("x")
    assert not list((tmp_path / "new").iterdir())
    with pytest.raises(ZeroDivisionError), staging_folder(tmp_path / "new", ".staging-"):
        raise ZeroDivisionError
    assert not list((tmp_path / "new").iterdir())


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_is_kept(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, sys\nfrom optbench.machine.staging import staging_folder\n"
        "with staging_folder(pathlib.Path(sys.argv[1]), 'staging-') as folder:\n"
        "    (folder / 'weights').write_text('x')\n    os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    (left,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert (left / "weights").is_file()
    # As the versions before left it: without a lock.
    (tmp_path / "staging-old").mkdir()
    (tmp_path / "other").mkdir()
    with staging_folder(tmp_path, "staging-") as mine:
        sweep_staging(tmp_path, "staging-")
        assert {path for path in tmp_path.iterdir() if path.is_dir()} == {mine, tmp_path / "other"}
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_sweeping_a_folder_that_is_not_there_does_nothing(tmp_path: Path) -> None:
    sweep_staging(tmp_path / "missing", "")
    assert not (tmp_path / "missing").exists()
