"""The streams of the command line: whatever fails, one line says so and the status is not that of a verdict."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from optbench import cli
from optbench.cli.terminal import print_heading, print_tables
from optbench.engines import onednn
from optbench.machine.cpu import read_machine
from optbench.record.record import Record, write_record
from optbench.report.table import Table


def shell(redirected: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line under a shell's redirection, such as `>&-`; its stderr where that is not redirected."""
    line = ["bash", "-c", f'"$0" -m optbench "$@" {redirected}', sys.executable, *arguments]
    return subprocess.run(line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, check=False)


@pytest.mark.parametrize("arguments", [["--help"], ["schema"], ["schema", "--json"], ["report", "RECORD"]], ids=" ".join)
@pytest.mark.parametrize(("redirected", "said"), [(">&-", "stdout is closed"), (">/dev/full", "stdout: cannot be written: No space")])
def test_stdout_that_takes_nothing_is_one_line_and_status_2(
    redirected: str, said: str, arguments: list[str], make_record: Callable[..., Record], tmp_path: Path
) -> None:
    record = str(write_record(make_record(), tmp_path))
    done = shell(redirected, *(record if word == "RECORD" else word for word in arguments))
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: {said}")
    assert len(done.stderr.splitlines()) == 1


def test_error_document_that_stdout_cannot_take_is_still_told_on_stderr() -> None:
    done = shell(">/dev/full", "report", "no-such-folder", "--json")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no-such-folder")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("redirected", ["2>&-", "2>/dev/full"])
def test_stderr_that_takes_nothing_leaves_the_status(redirected: str) -> None:
    assert shell(redirected, "report", "no-such-folder").returncode == 2


def test_a_panic_that_is_no_exception_exits_with_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class PanicException(BaseException):
        """As PyO3 raises where a library written in Rust panics."""

    def panicking() -> None:
        raise PanicException("index out of bounds")

    monkeypatch.setattr(cli, "app", panicking)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "PanicException: index out of bounds" in said
    assert "report it with the traceback in " in said
    assert len(said.splitlines()) == 1


def test_codes_of_pictographs_and_markup_are_printed_as_they_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    print_heading("oci://host/a:b: [bold]x[/bold]")
    print_tables([Table(":b:", ["a", ":b:"], [["1", "oci://host/a:b:"]], "[red]:b:")])
    shown = capsys.readouterr().out
    assert "oci://host/a:b: [bold]x[/bold]" in shown
    assert shown.count(":b:") == 5
    assert "\N{NEGATIVE SQUARED LATIN CAPITAL LETTER B}" not in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["schema", "--markdown", "--json"],
        ["apply", "minilm-l6", "--verbose", "--json"],
        ["apply", "minilm-l6", "--verbose", "--dry-run"],
        ["report", "--markdown", "--json"],
        ["report", "--markdown", "--html", "page.html"],
        ["report", "--table", "--html", "page.html"],
        ["report", "--table", "--percentile", "90"],
        ["report", "--json", "--percentile", "90"],
        ["report", "--plot", "plane"],
        ["report", "--peers", "folder"],
        ["report", "--probe", "probe.json"],
    ],
    ids=" ".join,
)
def test_options_that_would_be_ignored_are_refused(arguments: list[str]) -> None:
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 2
    said = " ".join(done.output.split())
    assert "cannot be combined with --" in said or "used only with --" in said


@pytest.mark.parametrize("command", ["check", "plan", "apply"])
def test_instruction_set_that_the_cpu_lacks_is_refused_before_anything_runs(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    flags = tuple(flag for flag in read_machine().flags if flag != "avx_vnni")
    machine = read_machine().model_copy(update={"flags": flags})
    monkeypatch.setattr(onednn, "read_machine", lambda: machine)
    where = [] if command == "check" else ["--cache", str(tmp_path / "cache")]
    done = CliRunner().invoke(cli.app, [command, "minilm-l6", "--isa", "avx2_vnni", *where])
    assert done.exit_code != 0
    assert "this CPU lacks avx_vnni" in done.output + str(done.exception)
    assert not list(tmp_path.iterdir())


def test_check_and_plan_take_the_tasks_that_apply_takes(tmp_path: Path) -> None:
    for command in ("check", "plan"):
        done = CliRunner().invoke(cli.app, [command, "minilm-l6", "--task", str(tmp_path / "missing")])
        assert "missing" in done.output + str(done.exception)
        assert done.exit_code != 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_a_command_says_where_it_stopped(number: signal.Signals) -> None:
    program = (
        # Under nohup the test's own processes ignore SIGHUP.
        "import signal, time\nsignal.signal(signal.SIGHUP, signal.SIG_DFL)\nfrom optbench.cli.progress import watching\n"
        "with watching() as watch:\n    watch.begin('2 quantize_static')\n    print('begun', flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "begun\n"
        os.kill(process.pid, number)
        said = process.stderr.read()
    assert process.returncode == 128 + number
    assert said.startswith(f"stopped by {number.name} in 2 quantize_static, after 0 s; finished work is kept")
    assert len(said.splitlines()) == 1


def test_document_of_a_bug_is_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def buggy() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "app", buggy)
    monkeypatch.setattr(sys, "argv", ["optbench", "report", "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "ZeroDivisionError"


def test_check_looks_for_the_files_of_a_task(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"_id": "1", "text": "red shoe"}\n')
    done = CliRunner().invoke(cli.app, ["check", "minilm-l6", "--task", str(tmp_path)])
    assert "qrels" in done.output + str(done.exception)
    assert done.exit_code != 0
