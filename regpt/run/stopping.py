"""Ctrl-C, SIGTERM, SIGUSR1, a closed terminal, and the end of the time: noticed where stopping loses nothing."""

import contextlib
import math
import os
import signal
import time
from types import FrameType, TracebackType
from typing import Any

from regpt.base.errors import HUNG_UP, INTERRUPTED, TERMINATED

EXIT_CODES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}
if hasattr(signal, "SIGHUP"):  # a closed terminal; Windows has none
    EXIT_CODES[signal.SIGHUP] = HUNG_UP
if hasattr(signal, "SIGUSR1"):  # what Slurm sends before the end, with --signal=USR1@120
    EXIT_CODES[signal.SIGUSR1] = TERMINATED
TIME_LIMIT = "run.time_limit"


class Stopped(Exception):
    """The run was asked to stop, by the signal or the setting `name`. `code` is the exit code after saving."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(name)
        self.name, self.code = name, code


class Stopping:
    """While in use, the first signal waits for `check()`; the second ends the process as it would have without us.

    With a time limit, `check()` also ends a run in time for its last checkpoint: `reserve` seconds before.
    """

    def __init__(self, time_limit: float = math.inf) -> None:
        """`time_limit` is in seconds from now on."""
        self.received: signal.Signals | None = None
        self.before: dict[signal.Signals, Any] = {}
        self.ends_at = time.monotonic() + time_limit
        self.reserve = 0.0

    def check(self) -> None:
        """Raise Stopped if a signal has come or the time is out. Call it every few seconds at least."""
        if self.received is not None:
            raise Stopped(self.received.name, EXIT_CODES[self.received])
        if time.monotonic() > self.ends_at - self.reserve:
            raise Stopped(TIME_LIMIT, TERMINATED)

    def __enter__(self) -> "Stopping":
        for number in EXIT_CODES:
            self.before[number] = signal.signal(number, self.notice)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def notice(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self.restore()
        with contextlib.suppress(OSError):  # print() may not be entered twice
            os.write(2, b"\nstopping at the next safe point, then saving; once more to end at once\n")

    def restore(self) -> None:
        while self.before:
            signal.signal(*self.before.popitem())
