"""A thread on each rank for what its main thread cannot do while it waits inside a library.

It shows that its rank is alive, notices a rank that is not or that has failed, and ends the process at a second signal.
The main thread always gets time to end by itself first: it can report more, and it can save.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed.distributed_c10d import Store

from regpt.base.errors import RANKS
from regpt.distributed.failures import FAILURE_KEY
from regpt.distributed.signals import DUPLICATE_SIGNAL_SECONDS, EXIT_CODES
from regpt.machine.env import exit_process

# Seconds that the main thread gets to end by itself ...
GRACE_AFTER_FAILURE = 30.0  # ... after another rank has failed
GRACE_AFTER_SILENCE = 5.0  # ... after another rank's timeout, which gloo notices as well
GRACE_AFTER_SIGNAL = 2.0  # ... after a second signal


class Heartbeat:
    """Writes this rank's heartbeat; rank 0 watches all others, and they watch rank 0."""

    def __init__(self, rank: int, size: int, store: Store, timeout: float) -> None:
        self.rank, self.size, self.store, self.timeout = rank, size, store, timeout
        self.beats = 0
        self.last_beats = dict.fromkeys(range(1, size) if rank == 0 else [0], b"")
        self.changed_at = dict.fromkeys(self.last_beats, time.monotonic())
        self.failed_at = self.signalled_at = 0.0
        self.done = threading.Event()

    def run(self, signals: int) -> None:
        """Work until `done` is set. Signals arrive as bytes at the file descriptor `signals`."""
        pause = min(1.0, self.timeout / 8)
        with contextlib.suppress(RuntimeError):  # the store has ended with torchrun: the main thread will report it
            while not self.done.is_set():
                if select.select([signals], [], [], pause)[0]:
                    for number in os.read(signals, 64):
                        self.on_signal(number)
                self.beat()
                self.check_failure()
                self.check_silence()

    def beat(self) -> None:
        self.beats += 1
        self.store.set(f"beat/{self.rank}", str(self.beats))

    def on_signal(self, number: int) -> None:
        if number not in EXIT_CODES:
            return
        now = time.monotonic()
        if not self.signalled_at:
            self.signalled_at = now
        elif now - self.signalled_at > DUPLICATE_SIGNAL_SECONDS and not self.done.wait(GRACE_AFTER_SIGNAL):
            os._exit(128 + number)

    def check_failure(self) -> None:
        """End the process if another rank has published a failure and the main thread still waits for that rank."""
        if not self.store.check([FAILURE_KEY]):
            return
        now = time.monotonic()
        self.failed_at = self.failed_at or now
        if now - self.failed_at > GRACE_AFTER_FAILURE:
            self.end(f"another rank has failed: {self.store.get(FAILURE_KEY).decode(errors='replace')}")

    def check_silence(self) -> None:
        """End the process if a watched rank's heartbeat has not changed within the timeout."""
        now = time.monotonic()
        for rank, last in self.last_beats.items():
            name = f"beat/{rank}"
            beat = self.store.get(name) if self.store.check([name]) else b""
            if beat != last:
                self.last_beats[rank], self.changed_at[rank] = beat, now
            elif now - self.changed_at[rank] > self.timeout + GRACE_AFTER_SILENCE:
                self.end(f"rank {rank} did not answer within {self.timeout:g} s (run.rank_timeout)")

    def end(self, why: str) -> None:
        if self.done.is_set():
            return
        where = "".join(traceback.format_stack(sys._current_frames()[threading.main_thread().ident or 0]))
        print(f"rank {self.rank} of {self.size} waited here:\n{where}", file=sys.stderr)
        print(f"error: rank {self.rank} of {self.size}: {why} — continue with `regpt resume`", file=sys.stderr)
        exit_process(RANKS)


@contextmanager
def heartbeat(rank: int, size: int, store: Store, timeout: float) -> Iterator[None]:
    """Run a Heartbeat thread during the block.

    `store` must be a connection of its own, because the main thread may hold the other one while it waits.
    """
    watcher = Heartbeat(rank, size, store, timeout)
    signals, waker = os.pipe()
    os.set_blocking(waker, False)
    before = signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    threading.Thread(target=watcher.run, args=(signals,), name="heartbeat", daemon=True).start()
    try:
        yield
    finally:
        watcher.done.set()
        signal.set_wakeup_fd(before)
