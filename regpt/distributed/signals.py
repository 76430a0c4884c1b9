"""Ctrl-C, SIGTERM, SIGUSR1, a closed terminal, and the end of the time: noticed where stopping loses nothing."""

import contextlib
import math
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

from regpt.base.errors import HUNG_UP, INTERRUPTED, TERMINATED

EXIT_CODES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}
if hasattr(signal, "SIGHUP"):  # a closed terminal; Windows has none
    EXIT_CODES[signal.SIGHUP] = HUNG_UP
if hasattr(signal, "SIGUSR1"):  # what Slurm sends before the end, with --signal=USR1@120
    EXIT_CODES[signal.SIGUSR1] = TERMINATED
TIME_LIMIT = "run.time_limit"
# Whatever may stop a run, by name: exit code. Ranks agree on one by its place here.
STOP_REASONS = {"": 0} | {number.name: code for number, code in EXIT_CODES.items()} | {TIME_LIMIT: TERMINATED}
DUPLICATE_SIGNAL_SECONDS = 3.0  # torchrun hands signals on, so that one stop may come twice to a rank


class StopRequested(Exception):
    """The run was asked to stop, by the signal or the setting `name`. `code` is the exit code after saving."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(name)
        self.name, self.code = name, code


def handled_signals() -> list[signal.Signals]:
    """Return the termination signals, without SIGHUP where nohup made the process ignore it."""
    hung_up = getattr(signal, "SIGHUP", None)
    return [number for number in EXIT_CODES if number != hung_up or signal.getsignal(number) != signal.SIG_IGN]


class SignalHandler(ABC):
    """Context manager that handles the termination signals with `on_signal`, and restores the previous handlers."""

    def __init__(self) -> None:
        self.before: dict[signal.Signals, Any] = {}

    @abstractmethod
    def on_signal(self, number: int, frame: FrameType | None) -> None: ...

    def __enter__(self) -> Self:
        for number in handled_signals():
            self.before[number] = signal.signal(number, self.on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def restore(self) -> None:
        while self.before:
            signal.signal(*self.before.popitem())


class GracefulStop(SignalHandler):
    """While in use, the first signal waits for `check()`; the second ends the process as it would have without us.

    With a time limit, `check()` also ends a run in time for its last checkpoint: `reserve` seconds before.
    """

    def __init__(self, time_limit: float = math.inf, several_ranks: bool = False, handle_signals: bool = True) -> None:
        """`time_limit` is in seconds from now on. With `several_ranks` signals that come together are one.

        Without `handle_signals` no handler is installed, and only the time limit stops.
        """
        super().__init__()
        self.handle_signals = handle_signals
        self.received: signal.Signals | None = None
        self.received_at = 0.0
        self.one_stop_seconds = DUPLICATE_SIGNAL_SECONDS if several_ranks else 0.0
        self.ends_at = time.monotonic() + time_limit
        self.reserve = 0.0

    def __enter__(self) -> Self:
        return super().__enter__() if self.handle_signals else self

    def stop_reason(self) -> str:
        """What asks the run to stop, by its name in REASONS; empty if nothing does."""
        if self.received is not None:
            return self.received.name
        return TIME_LIMIT if time.monotonic() > self.ends_at - self.reserve else ""

    def check(self) -> None:
        """Raise Stopped if a signal has come or the time is out. Call it every few seconds at least."""
        if name := self.stop_reason():
            raise StopRequested(name, STOP_REASONS[name])

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self.received_at = signal.Signals(number), time.monotonic()
            later = f" (after {self.one_stop_seconds:.0f} s)" if self.one_stop_seconds else ""
            with contextlib.suppress(OSError):  # print() may not be entered twice
                os.write(
                    2, f"\nstopping at the next safe point, then saving; once more{later} to end at once\n".encode()
                )
            if self.one_stop_seconds == 0.0:
                self.restore()
        elif time.monotonic() - self.received_at > self.one_stop_seconds:
            self.restore()
            signal.raise_signal(number)


class ImmediateStop(SignalHandler):
    """The first signal is kept in `stopped`, and raised wherever the work is, but only amid `now()`: not in tidying.

    Where Python swallows what a handler raises (amid a `__del__`, a callback), `check()` raises it again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stopped: StopRequested | None = None
        self.raises = False

    @contextlib.contextmanager
    def now(self) -> Iterator[None]:
        self.raises = True
        try:
            self.check()
            yield
        finally:
            self.raises = False

    def check(self) -> None:
        if self.stopped is not None:
            raise self.stopped

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stopped is None:
            received = signal.Signals(number)
            self.stopped = StopRequested(received.name, EXIT_CODES[received])
            if self.raises:
                raise self.stopped


def ignore_stop_signals() -> None:
    """From here on nothing but SIGKILL stops this process: it has done its work and is about to end."""
    for number in EXIT_CODES:
        signal.signal(number, signal.SIG_IGN)
