"""Worker processes: what crosses the pipe, and what is left when one of the two ends."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from optbench import errors
from optbench.errors import MachineError, StepError
from optbench.machine.progress import Progress
from optbench.machine.worker import Worker, peak_rss_bytes
from tests.machine import worker_targets

ROOT = Path(__file__).parents[2]


def start(function: str, payload: dict[str, Any] | None = None, environment: dict[str, str] | None = None) -> Worker:
    return Worker(getattr(worker_targets, function), payload or {}, environment)


def test_payload_and_requests_arrive_as_they_were_sent() -> None:
    payload = {"text": "naïve 😀\n", "deep": [1, 2.5, None, {"a": True}]}
    with start("echo", payload) as worker:
        for request in ({}, {"n": 1}, {"long": "x" * 300_000}):
            assert worker.request(request) == {"payload": payload, "request": request}


def test_interpreter_of_another_environment_serves_as_well(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexport THERE=yes\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    with Worker(worker_targets.tell_environment, {"name": "THERE"}, python=python) as worker:
        assert worker.request({}) == "yes"
    with start("tell_environment", {"name": "THERE"}) as worker:
        assert worker.request({}) is None


@pytest.mark.parametrize("name", errors.__all__)
def test_error_comes_back_as_its_own_class_with_its_own_words(name: str) -> None:
    with start("fail") as worker:
        with pytest.raises(getattr(errors, name)) as caught:
            worker.request({"class": name, "words": "where: what; do this"})
        assert type(caught.value) is getattr(errors, name)
        assert str(caught.value) == "where: what; do this"


def test_after_an_error_the_next_request_starts_again() -> None:
    with start("fail") as worker:
        with pytest.raises(StepError):
            worker.request({"class": "StepError", "words": "once"})
        assert worker.request({}) == "fine"


def test_error_that_the_parent_does_not_know_comes_back_as_its_nearest_class() -> None:
    with start("fail_narrowly") as worker, pytest.raises(StepError, match="layer 3 is too narrow"):
        worker.request({})


def test_bug_keeps_the_traceback_of_the_child() -> None:
    with start("divide_by_zero") as worker, pytest.raises(RuntimeError) as caught:
        worker.request({})
    assert "divide_by_zero failed in its process" in str(caught.value)
    assert "ZeroDivisionError" in str(caught.value)
    assert "worker_targets.py" in str(caught.value)


def test_function_that_is_not_at_the_top_of_its_module_is_a_bug_that_names_it() -> None:
    def nested(payload: dict[str, Any], progress: Progress) -> Iterator[Any]:
        yield

    with Worker(nested, {}) as worker, pytest.raises(RuntimeError, match="nested"):
        worker.request({})


def test_memory_error_says_what_to_do() -> None:
    with start("exhaust_memory") as worker, pytest.raises(MachineError, match="out of memory; close other programs"):
        worker.request({})


def test_answer_that_is_not_json_is_a_bug_and_leaves_the_worker_usable() -> None:
    with start("answer_with_an_object") as worker:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="not JSON serializable"):
                worker.request({})


def test_payload_that_is_not_json_starts_no_process() -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        start("echo", {"path": object()})


def test_request_that_is_not_json_leaves_the_worker_usable() -> None:
    with start("echo") as worker:
        with pytest.raises(TypeError, match="not JSON serializable"):
            worker.request({"path": object()})
        assert worker.request({"n": 1})["request"] == {"n": 1}


def test_what_the_child_prints_reaches_neither_the_answer_nor_our_output(capfd: pytest.CaptureFixture[str]) -> None:
    with start("print_everywhere") as worker:
        assert worker.request({}) == "answer"
    assert capfd.readouterr() == ("", "")


def test_progress_is_handed_on_in_order() -> None:
    seen: list[tuple[str, float | None]] = []
    with start("report") as worker:
        assert worker.request({}, lambda message, share: seen.append((message, share))) == "answer"
    assert seen == [("half way", 0.5), ("who knows", None)]


def test_progress_that_nobody_wants_is_dropped() -> None:
    with start("report") as worker:
        assert worker.request({}) == "answer"


def test_killed_child_is_an_error_that_speaks_of_memory() -> None:
    with start("end_by", {"signal": signal.SIGKILL}) as worker, pytest.raises(MachineError) as caught:
        worker.request({})
    assert "SIGKILL, usually by the kernel when memory runs out: close other programs" in str(caught.value)
    assert "last words" in str(caught.value)


def test_crashed_child_is_an_error_with_its_last_words() -> None:
    # SIGABRT rather than SIGSEGV: it is what C++ libraries end by, and no core dump handler is asked for an address.
    with start("end_by", {"signal": signal.SIGABRT}) as worker, pytest.raises(MachineError, match=r"SIGABRT.*fault in a library") as caught:
        worker.request({})
    assert "last words" in str(caught.value)


def test_child_killed_within_its_answer_is_the_same_error() -> None:
    with start("end_within_an_answer") as worker, pytest.raises(MachineError, match="SIGKILL"):
        worker.request({})


def test_request_to_a_dead_child_says_how_it_died() -> None:
    with start("end_by", {"signal": signal.SIGKILL}) as worker:
        for _ in range(2):
            with pytest.raises(MachineError, match="SIGKILL"):
                worker.request({})


def test_child_that_exits_by_itself_is_a_bug_with_its_status_and_last_words() -> None:
    with start("end_quietly") as worker, pytest.raises(RuntimeError, match=r"status 7:\nlast words"):
        worker.request({})


def test_ctrl_c_does_not_reach_the_child() -> None:
    with start("end_by", {"signal": signal.SIGINT}) as worker:
        assert worker.request({}) == "survived"


def test_close_ends_the_process_and_may_be_called_twice() -> None:
    worker = start("echo")
    worker.request({})
    watched = os.pidfd_open(worker.pid)
    worker.close()
    worker.close()
    assert select.select([watched], [], [], 0)[0], "the process still runs"
    os.close(watched)


def test_environment_is_set_for_the_child_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    with start("echo", environment={"ONEDNN_MAX_CPU_ISA": "AVX2"}) as worker:
        worker.request({})
        assert b"ONEDNN_MAX_CPU_ISA=AVX2" in Path(f"/proc/{worker.pid}/environ").read_bytes().split(b"\0")
    assert "ONEDNN_MAX_CPU_ISA" not in os.environ


def test_child_dies_with_a_parent_that_is_killed() -> None:
    program = (
        "from optbench.machine.worker import Worker\n"
        "from tests.machine.worker_targets import hang\n"
        "worker = Worker(hang, {})\n"
        "worker.request({}, lambda message, share: print(worker.pid, flush=True))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        # The child is busy, not reading: only the kernel can end it.
        child = int(parent.stdout.readline())
        watched = os.pidfd_open(child)
        parent.kill()
    ended = select.select([watched], [], [], 30)[0]
    os.close(watched)
    assert ended, "the child outlived its parent"


def test_modules_in_the_current_folder_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "this_folder_is_hostile.py").write_text("raise SystemExit('it ran')")
    monkeypatch.chdir(tmp_path)
    with start("find_module") as worker, pytest.raises(RuntimeError, match="No module named 'this_folder_is_hostile'"):
        worker.request({})


def test_peak_memory_is_the_childs_own_and_not_its_parents() -> None:
    block = bytearray(200 * 2**20)  # the parent's peak is now above what a bare child needs
    with start("read_peak", {"bytes": 64 * 2**20}) as worker:
        before, after, size = worker.request({})
    assert peak_rss_bytes() > len(block)
    assert before < 100 * 2**20
    # bytearray touches its pages by clearing them, all but perhaps the last.
    assert after - before > 0.9 * size
