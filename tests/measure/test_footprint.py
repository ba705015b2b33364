"""Memory of this process, anonymous and mapped."""

import mmap
from pathlib import Path

import pytest

from optbench.errors import MeasureError
from optbench.measure.footprint import MemorySample, read_memory

SIZE = 64 * 2**20
# Allocators and the interpreter come and go by a few MB while the block is held.
SLACK = 8 * 2**20


def test_own_memory_is_anonymous_and_stays_in_the_peak_when_it_is_gone() -> None:
    before = read_memory()
    # Mapped, not allocated: whether an allocator gives memory back depends on what a library has set it to.
    block = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for offset in range(0, SIZE, mmap.PAGESIZE):
        block[offset] = 1
    during = read_memory()
    assert during.anonymous_bytes - before.anonymous_bytes == pytest.approx(SIZE, abs=SLACK)
    assert abs(during.file_bytes - before.file_bytes) < SLACK
    block.close()
    after = read_memory()
    assert during.rss_bytes - after.rss_bytes == pytest.approx(SIZE, abs=SLACK)
    assert during.peak_rss_bytes >= during.rss_bytes
    # Each thread's count of pages reaches the kernel's sum some pages late.
    assert after.peak_rss_bytes > during.rss_bytes - SLACK


def test_mapped_file_is_file_memory_once_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"\1" * SIZE)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        before = read_memory()
        assert mapped.find(b"\2") == -1
        after = read_memory()
    assert after.file_bytes - before.file_bytes == pytest.approx(SIZE, abs=SLACK)
    assert abs(after.anonymous_bytes - before.anonymous_bytes) < SLACK


def test_fields_are_read_in_kibibytes(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text(
        "Name:\tpython\nVmHWM:\t     40 kB\nVmRSS:\t     30 kB\nRssAnon:\t     20 kB\nRssFile:\t      9 kB\nRssShmem:\t 1 kB\nThreads:\t1\n"
    )
    assert read_memory(status) == MemorySample(
        rss_bytes=30 * 1024, anonymous_bytes=20 * 1024, file_bytes=9 * 1024, peak_rss_bytes=40 * 1024
    )


def test_peak_is_never_below_what_is_resident(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("VmHWM: 20 kB\nVmRSS: 30 kB\nRssAnon: 20 kB\nRssFile: 10 kB\n")
    assert read_memory(tmp_path / "status").peak_rss_bytes == 30 * 1024


@pytest.mark.parametrize("content", ["", "VmHWM: 40 kB\nVmRSS: 30 kB\n", "VmHWM: many kB\n"])
def test_kernel_that_does_not_say_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "status").write_text(content)
    with pytest.raises(MeasureError, match=r"RssAnon.*measure on Linux 4\.5 or later"):
        read_memory(tmp_path / "status")


def test_no_proc_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match="measure on Linux"):
        read_memory(tmp_path / "status")
