"""Stop at a safe point after Ctrl-C, SIGTERM, SIGUSR1, a closed terminal or the time limit."""

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
from regpt.base.format import duration

EXIT_CODES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}
if hasattr(signal, "SIGHUP"):  # a closed terminal; not on Windows
    EXIT_CODES[signal.SIGHUP] = HUNG_UP
if hasattr(signal, "SIGUSR1"):  # sent by Slurm before the time limit, with --signal=USR1@120
    EXIT_CODES[signal.SIGUSR1] = TERMINATED
TIME_LIMIT = "run.time_limit"
# Reasons to stop: name to exit code. Ranks exchange the index in this table.
STOP_REASONS = {"": 0} | {number.name: code for number, code in EXIT_CODES.items()} | {TIME_LIMIT: TERMINATED}
DUPLICATE_SIGNAL_SECONDS = 3.0  # torchrun forwards signals, so a rank may receive one stop twice


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
    """The first signal stops the run at the next `check()`; the second has the effect it has without this handler.

    With a time limit, `check()` also stops the run `reserve` seconds before it, in time for the last checkpoint.
    """

    def __init__(self, time_limit: float = math.inf, several_ranks: bool = False, handle_signals: bool = True) -> None:
        """`time_limit` is in seconds from now. With `several_ranks`, signals in quick succession count as one.

        Without `handle_signals` no handler is installed; only the time limit stops the run.
        """
        super().__init__()
        self.handle_signals = handle_signals
        self.received: signal.Signals | None = None
        self.received_at = 0.0
        self.one_stop_seconds = DUPLICATE_SIGNAL_SECONDS if several_ranks else 0.0
        self.time_limit, self.ends_at = time_limit, time.monotonic() + time_limit
        self.reserve = 0.0

    def __enter__(self) -> Self:
        return super().__enter__() if self.handle_signals else self

    def stop_reason(self) -> str:
        """Return the reason to stop, a key of STOP_REASONS; empty if there is no reason."""
        if self.received is not None:
            return self.received.name
        reserve = min(self.reserve, self.time_limit / 2)  # the first half of a short limit is for training
        return TIME_LIMIT if time.monotonic() > self.ends_at - reserve else ""

    def check(self) -> None:
        """Raise StopRequested after a signal or the time limit. Call it at least every few seconds."""
        if name := self.stop_reason():
            raise StopRequested(name, STOP_REASONS[name])

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self.received_at = signal.Signals(number), time.monotonic()
            later = f" (after {duration(self.one_stop_seconds)})" if self.one_stop_seconds else ""
            with contextlib.suppress(OSError):  # print() is not reentrant
                os.write(
                    2, f"\nstopping at the next safe point, then saving; once more{later} to end at once\n".encode()
                )
            if self.one_stop_seconds == 0.0:
                self.restore()
        elif time.monotonic() - self.received_at > self.one_stop_seconds:
            self.restore()
            signal.raise_signal(number)


class ImmediateStop(SignalHandler):
    """Stores the first signal in `stopped`, and raises it at once inside `now()`, but not during clean-up.

    If Python ignores the exception of a handler (in `__del__` or a callback), `check()` raises it again.
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
    """Ignore all signals but SIGKILL from now on: the work is done and the process is about to end."""
    for number in EXIT_CODES:
        signal.signal(number, signal.SIG_IGN)
