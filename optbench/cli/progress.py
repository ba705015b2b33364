"""Progress on stderr: live lines on a terminal; elsewhere a line for each finished stage, and one a minute within a stage."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from optbench.cli.terminal import print_stderr

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from optbench.run.listener import ExpectedStage

__all__ = ["LiveWatch", "Watch", "show_seconds", "watching"]

# Between two lines of a stage where stderr is no terminal.
LINE_SECONDS = 60.0
# What a shell reports for a program that a signal ended: 128 and its number.
SIGNAL_STATUS = 128


class _Stopped(BaseException):
    """A signal that asks the process to end: what is open is closed and removed on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def show_seconds(seconds: float) -> str:
    """`45 s`, `3 min`, `2 h 10 min`: as exact as a guess deserves."""
    if seconds < 90:
        return f"{max(5, 5 * round(seconds / 5))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class Watch:
    """The listener of a command: a line for each finished stage."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        from optbench.run.time_left import TimeLeft

        # A second thread calls `say`.
        self._lock = threading.RLock()
        self._left = TimeLeft(clock)
        self._clock, self._started = clock, clock()
        self._label, self._message = "", ""
        self._share: float | None = None

    def expect(self, stages: "Sequence[ExpectedStage]") -> None:
        """Learn what is to come."""
        with self._lock:
            self._left.expect(stages)

    def begin(self, label: str) -> None:
        """Note that a stage has begun."""
        with self._lock:
            self._label, self._message, self._share = label, "", None
            self._left.begin(label)

    def update(self, message: str, share: float | None) -> None:
        """Note how far the stage is."""
        with self._lock:
            self._message, self._share = message, share
            self._left.update(share)

    def end(self, outcome: str) -> None:
        """Print the stage, its seconds and its outcome."""
        with self._lock:
            print_stderr(f"{self._left.elapsed:7.1f} s  {self._label}: {outcome}")
            self._left.end()
            self._label = ""

    @property
    def where(self) -> str:
        """The stage that is running and how long it has: ` in latency, after 12 s`; empty between stages."""
        return f" in {self._label}, after {self._left.elapsed:.0f} s" if self._label else ""

    def say(self) -> None:
        """Print a line about the stage that is running."""
        with self._lock:
            if not self._label:
                return
            parts = [self._message, "" if self._share is None else f"{self._share:.0%}", self.stage_left, self.run_left]
            print_stderr(f"{self._left.elapsed:7.1f} s  {self._label}: {', '.join(part for part in parts if part) or 'running'}")

    @property
    def stage_left(self) -> str:
        """`about 45 s left`; empty if unknown."""
        seconds = self._left.stage()
        return "" if seconds is None else f"about {show_seconds(seconds)} left"

    @property
    def run_left(self) -> str:
        """`whole run about 3 min left`; empty if unknown."""
        seconds = self._left.run()
        return "" if seconds is None else f"whole run about {show_seconds(seconds)} left"


class LiveWatch(Watch):
    """Two live lines besides: the stage that is running and, where it is known what is to come, the whole run."""

    def __init__(self, progress: "Progress", clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._progress = progress
        self._stage = progress.add_task("", total=1.0, visible=False, left="", message="")
        self._run = progress.add_task("whole run", total=1.0, visible=False, left="", message="")

    def begin(self, label: str) -> None:
        """Show the stage."""
        super().begin(label)
        self._progress.reset(self._stage, description=label, visible=True, left="", message="")
        self.refresh()

    def update(self, message: str, share: float | None) -> None:
        """Show how far the stage is."""
        super().update(message, share)
        self.refresh()

    def refresh(self) -> None:
        """Show the present time left."""
        with self._lock:
            self._progress.update(self._stage, message=self._message, completed=self._share or 0.0, left=self.stage_left)
            seconds = self._left.run()
        if seconds is not None:
            done = self._clock() - self._started
            self._progress.update(self._run, visible=True, total=done + seconds, completed=done, left=f"about {show_seconds(seconds)} left")

    def say(self) -> None:
        """The time left falls while nothing is reported."""
        self.refresh()

    def end(self, outcome: str) -> None:
        """Remove the stage's line."""
        self._progress.update(self._stage, visible=False)
        super().end(outcome)


def live_progress(console: "Console") -> "Progress":
    """The live lines, cut to the console's width."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.table import Column

    def text(field: str, ratio: int | None = None) -> TextColumn:
        return TextColumn(field, markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=ratio))

    columns = (text("{task.description}"), BarColumn(12), TimeElapsedColumn(), text("{task.fields[left]}"))
    return Progress(SpinnerColumn(), *columns, text("{task.fields[message]}", 1), console=console, transient=True, expand=True)


@contextmanager
def watching() -> Iterator[Watch]:
    """Show progress during the `with` block; if a signal ends it, say where it stopped and that finished work is kept."""
    with ExitStack() as shown:
        if sys.stderr.isatty():
            from rich.console import Console

            watch: Watch = LiveWatch(shown.enter_context(live_progress(Console(stderr=True, emoji=False, markup=False))))
            seconds = 1.0
        else:
            watch, seconds = Watch(), LINE_SECONDS
        shown.enter_context(_saying(watch, seconds))
        shown.enter_context(_raising_signals())
        try:
            yield watch
        except (KeyboardInterrupt, _Stopped) as error:
            shown.close()
            stopped = signal.Signals(error.number) if isinstance(error, _Stopped) else signal.SIGINT
            how = "interrupted" if stopped is signal.SIGINT else f"stopped by {stopped.name}"
            print_stderr(f"{how}{watch.where}; finished work is kept, and the next run resumes from it")
            if isinstance(error, _Stopped):
                raise SystemExit(SIGNAL_STATUS + error.number) from None
            raise


@contextmanager
def _saying(watch: Watch, seconds: float) -> Iterator[None]:
    """Call `say` every so many seconds, also while the main thread waits for a process."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(seconds):
            watch.say()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _raising_signals() -> Iterator[None]:
    """Raise `_Stopped` on SIGTERM, and on SIGHUP unless it is ignored, as under nohup."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stopped(number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    if threading.current_thread() is not threading.main_thread():  # only there can a handler be set
        yield
        return
    before = {number: signal.signal(number, stop) for number in numbers if signal.getsignal(number) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
