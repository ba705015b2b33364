"""Runs that are killed or interrupted at the command line. Nothing is lost or half-written."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from optbench.run.plan import Options
from tests.run.runs import assert_nothing_half_written


def command(path: Path, options: Options) -> list[str]:
    where = ["--cache", str(options.cache.root), "--output", str(options.output), "--json"]
    return [sys.executable, "-m", "optbench", "apply", str(path), *where]


def kill_after(line_part: str, path: Path, options: Options) -> None:
    """Run until a stage has just ended, and kill -9 the run: what follows that stage is running."""
    process = subprocess.Popen(command(path, options), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line_part in line:
            break
    else:
        pytest.fail(f"the stage never ended:\n{''.join(lines)}")
    process.kill()
    process.stderr.close()
    assert process.wait() == -signal.SIGKILL
    assert_nothing_half_written(options)


def test_killed_run_resumes_from_the_last_finished_stage(write_recipe: Callable[..., Path], options: Options) -> None:
    path = write_recipe()
    kill_after("  1 convert_openvino:", path, options)  # in quantize_static
    kill_after("  2 quantize_static: accuracy:", path, options)  # in latency
    done = subprocess.run(command(path, options), capture_output=True, text=True, check=False)
    assert [line.split("  ")[-1] for line in done.stderr.splitlines() if line.endswith(": cached")] == [
        "0 export_onnx: cached",
        "1 convert_openvino: cached",
        "2 quantize_static: cached",
    ]
    assert done.stderr.count("base: cached, verified") == 1
    answer = json.loads(done.stdout)
    assert answer["folder"] == str(options.output / "tiny")
    assert done.returncode == {"pass": 0, "fail": 1, "inconclusive": 3}[answer["verdict"]["outcome"]]
    assert_nothing_half_written(options)
    assert not list(options.cache.staging.glob("*"))


def test_interrupt_stops_with_its_own_status_and_leaves_no_process(write_recipe: Callable[..., Path], options: Options) -> None:
    with subprocess.Popen(command(write_recipe(), options), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "  base:" in line:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()  # ends when the last process that holds the pipe is gone
    assert process.returncode == 130
    assert "the next run resumes from it" in rest
    assert "Traceback" not in rest
    assert_nothing_half_written(options)
