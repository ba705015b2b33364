"""Reference boxes: the one that ships, what it matches, and broken files."""

from pathlib import Path

import pytest

from optbench.errors import MachineError
from optbench.machine.boxes import Box, load_boxes, matching_box, write_box
from optbench.machine.cpu import Machine
from optbench.measure.machine_state import describe_box
from optbench.recipe.load import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
GOOD = "name: lab\ncpu: EPYC\ncores: 4\nisa: avx2\n"


def make(cpu: str = "13th Gen Intel(R) Core(TM) i9-13900K", cores: int = 24, flags: tuple[str, ...] = ("avx2", "avx_vnni")) -> Machine:
    return Machine(
        cpu=cpu,
        architecture="x86_64",
        flags=flags,
        cores=cores,
        usable_threads=cores,
        cpu_quota=None,
        memory_bytes=32 * 2**30,
        system="Linux 6.1",
    )


@pytest.mark.parametrize(
    "cpu",
    [
        "12th Gen Intel(R) Core(TM) i9-12900",
        "12th Gen Intel(R) Core(TM) i9-12900KS",
        "13th Gen Intel(R) Core(TM) i9-13900K",
        "Intel(R) Core(TM) i9-14900KF",
        "Intel(R) Core(TM) i9-14900K CPU @ 3.20GHz",
    ],
)
def test_i9_desktop_of_the_three_generations_is_the_box(cpu: str) -> None:
    box = matching_box(make(cpu))
    assert box is not None
    assert box.name == "i9"


@pytest.mark.parametrize(
    "machine",
    [
        pytest.param(make("Intel(R) Core(TM) i9-11900K"), id="a generation before, with AVX-512"),
        pytest.param(make("12th Gen Intel(R) Core(TM) i9-12900HK"), id="a laptop"),
        pytest.param(make("13th Gen Intel(R) Core(TM) i9-13900T"), id="low power"),
        pytest.param(make("13th Gen Intel(R) Core(TM) i7-13700K"), id="an i7"),
        pytest.param(make("AMD EPYC"), id="a server"),
        pytest.param(make(cores=4), id="a virtual machine on it with few cores"),
        pytest.param(make(flags=("avx2",)), id="a hypervisor that hides VNNI"),
    ],
)
def test_other_machines_are_not_the_box(machine: Machine) -> None:
    assert matching_box(machine) is None


def test_limits_are_the_targets_of_the_recipes() -> None:
    box = next(box for box in load_boxes() if box.name == "i9")
    assert set(box.limits) == {"gte-large", "solon-large", "arctic-l"}
    for name, limits in box.limits.items():
        targets = load_recipe(RECIPES / f"{name}.yaml").targets
        assert targets.box == box.name
        assert (targets.baseline_ms, targets.latency_ms) == (limits.baseline_ms, limits.latency_ms)


def test_boxes_of_a_folder_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text(GOOD)
    (tmp_path / "desk.yaml").write_text(GOOD.replace("lab", "desk") + "governor: performance\nturbo: false\nmemory_gb: 64\nsystem: Linux\n")
    desk, lab = load_boxes(tmp_path)
    assert lab == Box(name="lab", cpu="EPYC", cores=4, isa="avx2")
    assert (desk.name, desk.governor, desk.turbo, desk.memory_gb) == ("desk", "performance", False, 64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD.replace("cores: 4", "cores: many"), "cores: Input should be a valid integer"),
        (GOOD.replace("isa: avx2", "isa: avx9"), "isa: Input should be"),
        (GOOD.replace("cpu: EPYC", "cpu: '['"), "cpu: Value error, not a regular expression"),
        (GOOD + "speed: fast\n", "speed: Extra inputs are not permitted"),
        (GOOD + "limits: {x: {baseline_ms: 0, latency_ms: 1}}\n", "limits.x.baseline_ms: Input should be greater than 0"),
        (GOOD + "name: twice\n", "cannot be read as YAML"),
        ("cpu: [\n", "cannot be read as YAML"),
        ("", "top: Input should be a valid dictionary"),
        (GOOD.replace("name: lab", "name: other"), "name: other found, lab expected"),
    ],
)
def test_broken_box_is_an_error_that_names_file_and_key(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "lab.yaml").write_text(content)
    with pytest.raises(MachineError) as caught:
        load_boxes(tmp_path)
    assert message in str(caught.value)
    assert "lab.yaml" in str(caught.value)


def test_bytes_that_are_no_text_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MachineError, match="cannot be read as YAML"):
        load_boxes(tmp_path)


def test_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="no such folder"):
        load_boxes(tmp_path / "none")


def test_machine_described_as_a_box_is_read_back_and_matches_itself_alone(tmp_path: Path) -> None:
    machine = make("AMD Ryzen 9 7950X (16-Core)", cores=16)
    cpufreq = tmp_path / "root/sys/devices/system/cpu/cpu0/cpufreq"
    cpufreq.mkdir(parents=True)
    (cpufreq / "scaling_governor").write_text("performance\n")
    (cpufreq.parent.parent / "intel_pstate").mkdir()
    (cpufreq.parent.parent / "intel_pstate/no_turbo").write_text("1\n")
    path = write_box(describe_box("lab-2", machine, tmp_path / "root"), tmp_path)
    assert path == tmp_path / "lab-2.yaml"
    (box,) = load_boxes(tmp_path)
    assert box.matches(machine)
    assert not box.matches(make("AMD Ryzen 9 7950X (16-Core) Pro", cores=16))
    assert (box.governor, box.turbo, box.memory_gb, box.system, box.limits) == ("performance", False, 32, "Linux 6.1", {})


def test_box_of_a_machine_that_shows_neither_governor_nor_turbo_leaves_them_out(tmp_path: Path) -> None:
    text = write_box(describe_box("lab", make("x", cores=2), tmp_path), tmp_path).read_text()
    assert "governor" not in text
    assert "turbo" not in text


@pytest.mark.parametrize("name", ["../lab", "Lab", "", "a/b", ".lab", "lab\n", "a" * 65])
def test_box_name_that_is_no_safe_file_name_is_refused(name: str) -> None:
    with pytest.raises(MachineError, match="expected lower-case letters, digits"):
        describe_box(name, make("x", cores=2))


def test_box_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text(GOOD)
    with pytest.raises(MachineError, match=r"lab.yaml: exists and is not overwritten"):
        write_box(Box(name="lab", cpu="x", cores=1, isa="avx2"), tmp_path)
    assert (tmp_path / "lab.yaml").read_text() == GOOD


def test_second_box_of_one_machine_is_refused() -> None:
    with pytest.raises(MachineError, match="this machine is already box i9"):
        describe_box("mine", make())


def test_box_needs_a_checkout(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="boxes are added in a checkout"):
        write_box(Box(name="lab", cpu="x", cores=1, isa="avx2"), tmp_path / "none")
