"""What the machine is: instruction sets, quotas, affinity, disk."""

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from optbench.errors import MachineError, StepError
from optbench.machine import cpu as machine
from optbench.machine.cpu import Isa, Machine, cpu_quota, parse_cpuinfo, physical_cores, read_machine, usable_threads
from optbench.machine.disk import free_disk, full_disk_errors

Files = dict[str, str]


def make(**changes: object) -> Machine:
    values: dict[str, object] = {
        "cpu": "Some CPU",
        "architecture": "x86_64",
        "flags": ("avx2",),
        "cores": 8,
        "usable_threads": 8,
        "cpu_quota": None,
        "memory_bytes": 32 * 2**30,
        "system": "Linux 6.1.0",
    }
    return Machine.model_validate({**values, **changes})


# Instruction sets.


@pytest.mark.parametrize(
    ("flags", "isa", "vnni", "bf16", "amx"),
    [
        ("", "sse4_1", False, False, False),
        ("sse4_1 avx", "sse4_1", False, False, False),
        ("avx avx2 fma", "avx2", False, False, False),
        ("avx2 avx_vnni", "avx2_vnni", True, False, False),  # i9 of the 12th to 14th generation
        ("avx2 avx512f", "avx2", False, False, False),  # Knights Landing: without the byte instructions oneDNN keeps to AVX2
        ("avx2 avx512f avx512bw avx512vl", "avx512_core", False, False, False),  # Skylake-X
        ("avx2 avx512bw avx512vl avx512_vnni", "avx512_core_vnni", True, False, False),  # Ice Lake
        ("avx2 avx512bw avx512vl avx512_vnni avx512_bf16", "avx512_core_bf16", True, True, False),  # Zen 4
        ("avx2 avx_vnni avx512bw avx512vl avx512_vnni avx512_bf16", "avx512_core_bf16", True, True, False),  # Zen 5
        ("avx2 avx512bw avx512vl avx512_vnni avx512_bf16 amx_int8 amx_bf16", "avx512_core_amx", True, True, True),  # Sapphire Rapids
    ],
)
def test_flags_give_the_largest_instruction_set(flags: str, isa: str, vnni: bool, bf16: bool, amx: bool) -> None:
    found = make(flags=tuple(flags.split()))
    assert (found.isa, found.has_vnni, found.has_bf16, found.has_amx) == (isa, vnni, bf16, amx)


ZEN5 = ("avx", "avx2", "avx512_bf16", "avx512_vnni", "avx512bw", "avx512vl", "avx_vnni", "fma", "sse4_1")


@pytest.mark.parametrize(
    ("isa", "vnni", "bf16"),
    [
        ("sse4_1", False, False),
        ("avx2", False, False),
        ("avx2_vnni", True, False),
        ("avx512_core", False, False),
        ("avx512_core_vnni", True, False),
        ("avx512_core_bf16", True, True),
    ],
)
def test_machine_limited_to_an_instruction_set_has_nothing_beyond_it(isa: Isa, vnni: bool, bf16: bool) -> None:
    whole = make(flags=ZEN5)
    limited = whole.limited_to(isa)
    assert (limited.isa, limited.has_vnni, limited.has_bf16, limited.has_amx) == (isa, vnni, bf16, False)
    assert (limited.fingerprint == whole.fingerprint) == (isa == whole.isa)
    assert limited.limited_to(isa) == limited


def test_amx_is_gone_where_it_is_beyond_the_limit() -> None:
    whole = make(flags=(*ZEN5, "amx_int8", "amx_bf16"))
    assert whole.limited_to("avx512_core_amx") == whole
    assert not whole.limited_to("avx512_core_bf16").has_amx


def test_machine_cannot_be_limited_to_what_it_lacks() -> None:
    with pytest.raises(MachineError, match=r"this CPU lacks avx_vnni, so it cannot run as one that has it; it can run as sse4_1, avx2$"):
        make(flags=("avx2", "sse4_1")).limited_to("avx2_vnni")


def test_cpuinfo_gives_the_first_cpus_name_and_flags() -> None:
    text = "processor\t: 0\nmodel name\t: Intel(R) Core(TM) i9-13900K\nflags\t\t: sse4_1 avx2 avx_vnni\n\nmodel name\t: other\nflags\t: x\n"
    assert parse_cpuinfo(text) == ("Intel(R) Core(TM) i9-13900K", ("avx2", "avx_vnni", "sse4_1"))


def test_cpuinfo_of_arm_has_features_and_no_name() -> None:
    assert parse_cpuinfo("processor\t: 0\nFeatures\t: fp asimd\n") == ("", ("asimd", "fp"))
    assert parse_cpuinfo("") == ("", ())


def test_this_machine_is_read_and_survives_json() -> None:
    found = read_machine()
    assert Machine.model_validate_json(found.model_dump_json()) == found
    assert found.usable_threads >= 1
    assert found.memory_bytes > 2**30


@pytest.mark.parametrize(
    "changes", [{"system": "Linux 6.8.1"}, {"memory_bytes": 32 * 2**30 - 40 * 2**20}, {"flags": ("avx2", "new_in_this_kernel")}]
)
def test_fingerprint_outlives_a_reboot_and_a_kernel_update(changes: dict[str, object]) -> None:
    assert make(**changes).fingerprint == make().fingerprint


@pytest.mark.parametrize(
    "changes",
    [
        {"cpu": "Other CPU"},
        {"flags": ("avx2", "avx_vnni")},
        {"cores": 4},
        {"usable_threads": 4},
        {"cpu_quota": 4.0},
        {"memory_bytes": 16 * 2**30},
        {"system": "Darwin 24"},
    ],
)
def test_fingerprint_tells_machines_apart(changes: dict[str, object]) -> None:
    assert make(**changes).fingerprint != make().fingerprint


# Quotas and affinity.


def quota_of(root: Path, membership: str, files: Files) -> float | None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    (root / "membership").write_text(membership)
    return cpu_quota(root, root / "membership")


def v1(folder: str, quota: int, period: int = 100_000) -> Files:
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": f"{period}\n"}


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        pytest.param("0::/\n", {}, None, id="v2, no file"),
        pytest.param("0::/\n", {"cpu.max": "max 100000\n"}, None, id="v2, no limit"),
        pytest.param("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5, id="v2, inside a container's own namespace"),
        pytest.param("0::/a/b\n", {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "200000 100000\n"}, 2.0, id="v2, the parent is tighter"),
        pytest.param("0::/a/b\n", {"a/b/cpu.max": "100000 100000\n", "a/cpu.max": "max 100000\n"}, 1.0, id="v2, the child is tighter"),
        pytest.param("0::/on/the/host\n", {"cpu.max": "300000 100000\n"}, 3.0, id="v2, the path is the host's"),
        pytest.param("0::/../../other\n", {"cpu.max": "300000 100000\n"}, 3.0, id="v2, the path leads out of the namespace"),
        pytest.param("0::/\n", {"cpu.max": "broken\n"}, None, id="v2, broken"),
        pytest.param("0::/\n", {"cpu.max": "100 0\n"}, None, id="v2, no period"),
        pytest.param("3:cpu:/\n", v1("cpu", -1), None, id="v1, no limit"),
        pytest.param("3:cpu,cpuacct:/\n", v1("cpu", 250_000), 2.5, id="v1, in the root"),
        pytest.param("3:cpu,cpuacct:/docker/x\n", {**v1("cpu", -1), **v1("cpu/docker/x", 50_000)}, 0.5, id="v1, nested"),
        pytest.param("3:cpu,cpuacct:/d\n", v1("cpu,cpuacct/d", 50_000), 0.5, id="v1, mounted under both names"),
        pytest.param("3:cpuset:/tight\n2:cpu:/\n", v1("cpu/tight", 50_000), None, id="v1, another controller's path"),
        pytest.param("4:cpu:/\n0::/x\n", {**v1("cpu", 300_000), "unified/x/cpu.max": "100000 100000"}, 1.0, id="both, v2 tighter"),
        pytest.param("4:cpu:/\n0::/x\n", {**v1("cpu", 50_000), "unified/x/cpu.max": "100000 100000"}, 0.5, id="both, v1 tighter"),
        pytest.param("nonsense\n", {"cpu.max": "100000 100000"}, 1.0, id="membership is nonsense"),
    ],
)
def test_quota_is_the_smallest_along_the_path(tmp_path: Path, membership: str, files: Files, quota: float | None) -> None:
    assert quota_of(tmp_path, membership, files) == quota


def test_machine_without_cgroups_has_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "none", tmp_path / "none") is None


@pytest.mark.parametrize(("affinity", "quota", "threads"), [(8, None, 8), (8, 3.0, 3), (2, 3.0, 2), (8, 1.5, 2), (8, 0.2, 1), (1, None, 1)])
def test_usable_threads_are_the_affinity_mask_cut_to_the_quota(
    monkeypatch: pytest.MonkeyPatch, affinity: int, quota: float | None, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)))
    monkeypatch.setattr(machine, "physical_cores", len)
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    assert usable_threads() == threads


def test_hyper_threads_of_one_core_count_once(tmp_path: Path) -> None:
    for cpu, siblings in enumerate(["0-1", "0-1", "2,3", "2,3", "4"]):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    assert physical_cores(range(5), tmp_path) == 3
    assert physical_cores([1, 3], tmp_path) == 2
    assert physical_cores([6, 7], tmp_path) == 2  # a kernel that does not say


# Disk.

Usage = namedtuple("Usage", ["total", "used", "free"])


def test_full_disk_is_seen_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10, 9, 1_200_000_000))
    free_disk(tmp_path / "not" / "yet", 1_200_000_000, "the model")
    with pytest.raises(MachineError, match=r"yet: the model needs 2\.3 GB and 1\.2 GB are free; free some space, or name another folder"):
        free_disk(tmp_path / "not" / "yet", 2_300_000_000, "the model")


def test_disk_is_looked_up_where_the_folder_will_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: asked.append(folder) or Usage(1, 0, 1))  # type: ignore[func-returns-value]
    free_disk(tmp_path / "not" / "yet", 1, "the model")
    assert asked == [tmp_path]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EFBIG, "File too large"), OSError("20160 requested and 2016 written")],
)
def test_what_libraries_raise_on_a_full_disk_is_one_clear_error(error: OSError, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"the disk is full.*free some space"), full_disk_errors(tmp_path):
        raise error


def test_an_unnamed_failure_on_a_full_disk_is_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10, 10, 0))
    with pytest.raises(MachineError, match="the disk is full"), full_disk_errors(tmp_path):
        raise RuntimeError("Check 'bin_file' failed")


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "Permission denied"), ValueError("a bug"), StepError("refused")])
def test_other_failures_pass_through(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)), full_disk_errors(tmp_path):
        raise error
