"""Ctrl-C, SIGTERM and a closed terminal: noticed between two pieces of work, where stopping loses nothing."""

import contextlib
import os
import signal
from types import FrameType, TracebackType
from typing import Any

from regpt.base.errors import HUNG_UP, INTERRUPTED, TERMINATED

EXIT_CODES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}
if hasattr(signal, "SIGHUP"):  # a closed terminal; Windows has none
    EXIT_CODES[signal.SIGHUP] = HUNG_UP


class Stopped(Exception):
    """Somebody asked the run to stop. `code` is the exit code after saving."""

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(received.name)
        self.name = received.name
        self.code = EXIT_CODES[received]


class Stopping:
    """While in use, the first signal waits for `check()`; the second ends the process as it would have without us."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.before: dict[signal.Signals, Any] = {}

    def check(self) -> None:
        """Raise Stopped if a signal has come. Call it between pieces of work of a few seconds at most."""
        if self.received is not None:
            raise Stopped(self.received)

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
