"""The command line: what it prints, where, and how it exits."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from optbench import cli
from optbench.artifact.folder import Artifact, seal
from optbench.artifact.manifest import Kind
from optbench.record.record import Record, write_record

RECIPES = Path(__file__).parents[2] / "recipes"
COMMANDS = ("init", "check", "schema", "plan", "apply", "measure", "report", "probe", "compare", "gate", "stability", "scenarios")


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "optbench", *arguments], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_its_options(command: str) -> None:
    result = CliRunner().invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0
    assert "--json" in result.stdout
    assert "3 inconclusive" in " ".join(result.stdout.split())


def test_completion_of_a_shell_names_commands_and_values() -> None:
    # Without the variable typer asks the process above for its shell, and takes no name.
    undetected = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    script = run("--show-completion", "bash", env=undetected).stdout
    assert "complete -o default -F" in script
    for words, wanted in (("optbench re", "report"), ("optbench apply --isa avx2_", "avx2_vnni")):
        environment = {**os.environ, "_OPTBENCH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        program = [sys.executable, "-c", "import sys; sys.argv[0] = 'optbench'; from optbench.cli import main; main()"]
        done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
        assert done.stdout.split() == [wanted]


def test_ctrl_c_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(path: Path, **_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("optbench.recipe.load.load_recipe", stopped)
    assert CliRunner().invoke(cli.app, ["check", "recipes/minilm-l6.yaml"]).exit_code == 130


def test_check_says_ok_and_exits_0() -> None:
    done = run("check", *map(str, sorted(RECIPES.glob("*.yaml"))))
    assert done.returncode == 0
    assert done.stdout.count(": ok, ") == len(list(RECIPES.glob("*.yaml")))


def test_check_of_a_broken_recipe_exits_2_and_names_the_place(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text((RECIPES / "gte-large.yaml").read_text().replace("layers: 24", "layers: many"))
    done = run("check", str(RECIPES / "gte-large.yaml"), str(path))
    assert done.returncode == 2
    assert "gte-large.yaml: ok" in done.stdout
    assert "base.body.layers" in done.stderr
    as_json = json.loads(run("check", "--json", str(path)).stdout)
    assert "base.body.layers" in as_json["recipes"][0]["problems"][0]


def test_check_takes_a_few_times_what_importing_its_libraries_takes() -> None:
    def processor_seconds(work: Callable[[], object]) -> float:
        # Not wall time: it does not depend on what else runs.
        before = os.times()
        work()
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    libraries = [sys.executable, "-c", "import numpy, pydantic, rich.console, typer, yaml"]
    yardstick = min(processor_seconds(lambda: subprocess.run(libraries, check=True)) for _ in range(3))
    # 3 times on a Zen 3 (0.5 and 1.5 s); torch alone would be 4 more.
    assert processor_seconds(lambda: run("check", *map(str, sorted(RECIPES.glob("*.yaml"))))) < 4.5 * yardstick


def test_schema_is_json() -> None:
    assert json.loads(run("schema").stdout)["title"] == "Recipe"


def test_error_is_one_message_without_traceback() -> None:
    done = run("apply", "no/such/recipe.yaml")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no/such/recipe.yaml:1 top: cannot be read")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_unknown_option_exits_2() -> None:
    done = run("apply", "--no-such-option", "recipes/minilm-l6.yaml")
    assert done.returncode == 2
    assert "--no-such-option" in done.stderr


def test_recipe_name_with_a_path_in_it_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "hostile.yaml"
    path.write_text((RECIPES / "minilm-l6.yaml").read_text().replace("name: minilm-l6", "name: ../../escape"))
    done = run("apply", str(path), "--output", str(tmp_path / "exported"), "--cache", str(tmp_path / "cache"))
    assert done.returncode == 2
    assert "name: '../../escape' found" in done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["hostile.yaml"]


def test_missing_hub_names_the_two_ways_on(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    where = ["--output", str(tmp_path / "exported"), "--cache", str(tmp_path / "cache")]
    done = run("apply", str(RECIPES / "arctic-l.yaml"), *where, env=environment)
    assert done.returncode == 2
    assert "--weights random" in done.stderr
    assert "--base path:" in done.stderr
    assert "Traceback" not in done.stderr


def test_plan_and_dry_run_show_the_same_and_write_nothing(tmp_path: Path) -> None:
    where = ["--cache", str(tmp_path / "cache"), "--weights", "random", "--json"]
    planned = json.loads(run("plan", str(RECIPES / "gte-large.yaml"), *where).stdout)["plan"]
    dry = json.loads(run("apply", "--dry-run", str(RECIPES / "gte-large.yaml"), *where, cwd=tmp_path).stdout)["plan"]
    assert planned == dry
    assert [step["state"] for step in planned["steps"]] == ["run"] * len(planned["steps"])
    assert list(tmp_path.iterdir()) == []


def test_from_an_unknown_step_lists_the_known_ones() -> None:
    done = run("plan", str(RECIPES / "gte-large.yaml"), "--from", "nonsense")
    assert done.returncode == 2
    assert "it has export_onnx" in done.stderr


def test_report_of_a_record_shows_its_tables_and_as_json_only_json(make_record: Callable[..., Record], tmp_path: Path) -> None:
    path = write_record(make_record(), tmp_path / "exported" / "gte-large" / "records")
    shown = run("report", str(path), env={**os.environ, "COLUMNS": "200"})
    assert shown.returncode == 0
    assert "What each step bought and cost" in shown.stdout
    assert "Verdict" in shown.stdout
    document = json.loads(run("report", "--json", cwd=tmp_path / ".").stdout)
    assert document["records"][0]["verdict"]["outcome"] in ("pass", "fail", "inconclusive")
    assert document["schema_version"] == 1


@pytest.mark.parametrize("arguments", [["report"], ["report", "--json"], ["report", "--markdown"], ["schema"], ["--version"]])
def test_output_that_nobody_reads_to_its_end_ends_the_command_quietly(
    arguments: list[str], make_record: Callable[..., Record], tmp_path: Path
) -> None:
    paths = [str(write_record(make_record(), tmp_path))] if arguments[0] == "report" else []
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        program = [sys.executable, "-m", "optbench", *arguments, *paths]
        done = subprocess.run(program, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")


def test_error_is_said_although_nobody_reads_the_document() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        program = [sys.executable, "-m", "optbench", "report", "no-such-folder", "--json"]
        done = subprocess.run(program, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 141
    assert done.stderr.startswith("error: no-such-folder")
    assert len(done.stderr.splitlines()) == 1


def test_report_where_nothing_was_run_says_what_to_do(tmp_path: Path) -> None:
    done = run("report", cwd=tmp_path)
    assert done.returncode == 2
    assert "run optbench apply" in done.stderr


def test_a_bug_exits_with_2_and_names_the_file_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def buggy() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "app", buggy)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    (report,) = tmp_path.glob("optbench-bug-*.txt")
    assert str(report) in capsys.readouterr().err
    assert "raise ZeroDivisionError" in report.read_text()


def test_measure_refuses_lengths_that_are_not_numbers(tmp_path: Path) -> None:
    done = run("measure", str(tmp_path), "--lengths", "8,many")
    assert done.returncode == 2
    assert "--lengths" in done.stderr


def test_measure_of_a_folder_that_is_no_artifact_is_a_clear_error(tmp_path: Path) -> None:
    done = run("measure", str(tmp_path))
    assert done.returncode == 2
    assert "manifest.json" in done.stderr


def test_compare_shows_records_against_the_first(make_record: Callable[..., Record], tmp_path: Path) -> None:
    paths = [
        write_record(make_record(candidate_ms=ms, created=f"2026-11-2{day}T12:00:00Z"), tmp_path) for day, ms in ((4, 36.0), (5, 18.0))
    ]
    document = json.loads(run("compare", *map(str, paths), "--json").stdout)
    assert document["entries"][1]["relative"]["16"]["point"] == pytest.approx(2, rel=0.02)
    assert run("compare", *map(str, paths)).returncode == 0


def probed(path: Path, record: Record, threads: int = 2) -> Path:
    """A file as `optbench probe --json` prints it on the record's machine."""
    peaks = {"threads": threads, "read_gb_per_s": 50.0, "gemm_tops": {"fp32": 0.4, "int8": 1.6}}
    document = {"schema_version": 1, "command": "probe", "machine": record.machine.model_dump(mode="json"), "peaks": peaks, "floors": []}
    path.write_text(json.dumps(document))
    return path


def test_compare_across_machines_by_their_floors(make_record: Callable[..., Record], tmp_path: Path) -> None:
    here = make_record()
    there = make_record(candidate_ms=72.0, machine=here.machine.model_copy(update={"cpu": "another"}), created="2026-11-25T12:00:00Z")
    paths = [str(write_record(record, tmp_path / "records")) for record in (here, there)]
    assert "machine: " in run("compare", *paths).stderr
    own = ["--normalize", "floor", "--peaks", str(probed(tmp_path / "here.json", here))]
    unknown = run("compare", *paths, *own)
    assert unknown.returncode == 2
    assert "another" in unknown.stderr
    assert "pass the file with --peaks" in unknown.stderr
    document = json.loads(run("compare", *paths, *own, "--peaks", str(probed(tmp_path / "there.json", there)), "--json").stdout)
    first, second = (entry["relative"]["16"]["point"] for entry in document["entries"])
    assert second == pytest.approx(2 * first, rel=0.02)


@pytest.mark.parametrize(("content", "said"), [("{}", "machine: Field required"), ("[", "cannot be read as JSON")])
def test_peaks_that_are_no_probe_are_a_clear_error(content: str, said: str, make_record: Callable[..., Record], tmp_path: Path) -> None:
    path = str(write_record(make_record(), tmp_path / "records"))
    (tmp_path / "peaks.json").write_text(content)
    done = run("compare", path, path, "--normalize", "floor", "--peaks", str(tmp_path / "peaks.json"))
    assert done.returncode == 2
    assert said in done.stderr


def test_peaks_without_normalize_are_refused(tmp_path: Path) -> None:
    done = run("compare", "a", "b", "--peaks", "c")
    assert done.returncode == 2
    assert "--normalize floor" in done.stderr


def test_box_name_with_a_path_in_it_is_refused() -> None:
    done = run("probe", "--write-box", "../escape")
    assert done.returncode == 2
    assert "box name '../escape'" in done.stderr


@pytest.mark.parametrize(("ms", "status"), [(36.0, 0), (48.0, 1)])
def test_gate_exits_with_its_outcome(ms: float, status: int, make_record: Callable[..., Record], tmp_path: Path) -> None:
    old = write_record(make_record(candidate_ms=36.0), tmp_path / "old")
    changed = make_record(candidate_ms=ms, created="2026-11-25T12:00:00Z")
    final = changed.final.model_copy(update={"artifact_sha256": "e" * 64})
    new = write_record(changed.model_copy(update={"points": (changed.points[0], final)}), tmp_path / "new")
    done = run("gate", str(old), str(new))
    assert done.returncode == status, done.stdout
    assert "tokens" in done.stdout


def test_gate_refuses_records_of_different_threads(make_record: Callable[..., Record], tmp_path: Path) -> None:
    paths = [write_record(make_record(threads=threads), tmp_path / str(threads)) for threads in (2, 4)]
    done = run("gate", *map(str, paths))
    assert done.returncode == 2
    assert "threads: 2 and 4" in done.stderr


def test_gate_times_both_artifacts_again(
    make_artifact: Callable[..., Artifact], make_record: Callable[..., Record], tmp_path: Path
) -> None:
    record = make_record(weights="random")
    workload = record.recipe.workload.model_copy(update={"lengths": (8, 16), "judged_lengths": None})
    record = record.model_copy(update={"recipe": record.recipe.model_copy(update={"workload": workload})})
    for name in ("old", "new"):
        shutil.copytree(make_artifact(Kind.OPENVINO).path, tmp_path / name / "staging")
        write_record(record, tmp_path / name / "staging" / "records")
        seal(tmp_path / name / "staging", tmp_path / name / "model", Kind.OPENVINO, "random")
    folders = str(tmp_path / "old" / "model"), str(tmp_path / "new" / "model")
    # No process of this machine is a hundred times as slow as another.
    done = run("gate", *folders, "--retime", "--processes", "2", "--latency-limit", "100", "--json")
    document = json.loads(done.stdout)
    assert [check["about"] for check in document["checks"]] == ["latency, 8 tokens", "latency, 16 tokens"]
    assert {(check["change"]["n"], check["change"]["of"]) for check in document["checks"]} == {(2, "processes")}
    assert any("timed again" in note for note in document["notes"])
    assert done.returncode in (0, 3), done.stderr


def test_gate_cannot_time_a_record_without_its_artifact(make_record: Callable[..., Record], tmp_path: Path) -> None:
    path = str(write_record(make_record(), tmp_path))
    done = run("gate", path, path, "--retime")
    assert done.returncode == 2
    assert "artifact" in done.stderr


def test_gate_refuses_processes_where_nothing_is_timed(make_record: Callable[..., Record], tmp_path: Path) -> None:
    path = str(write_record(make_record(), tmp_path))
    done = run("gate", path, path, "--processes", "3")
    assert done.returncode == 2
    assert "--retime" in done.stderr


def test_stability_of_a_small_artifact_is_shown_and_gated(make_artifact: Callable[..., Artifact]) -> None:
    folder = str(make_artifact(Kind.OPENVINO).path)
    shown = run("stability", folder, "--texts", "16", "--floor", "0.99", "--json")
    assert shown.returncode == 0, shown.stderr
    document = json.loads(shown.stdout)
    assert document["below"] == []
    assert len(document["rows"]) >= 5


def test_scenarios_of_a_small_artifact_have_all_three(make_artifact: Callable[..., Artifact]) -> None:
    # A low rate or a long limit would take minutes: p99 needs many queries, and a run lasts many limits.
    done = run("scenarios", str(make_artifact(Kind.OPENVINO).path), "--seconds", "0.2", "--rate", "2000", "--limit-ms", "5")
    assert done.returncode == 0, done.stderr
    for word in ("single", "server", "offline"):
        assert word in done.stdout.lower()
