"""A thread on each rank for what its main thread cannot see while it waits inside a library.

It says that its rank lives, looks whether others do, hears when one has failed, and ends the process at a second
signal. The main thread always comes first: it can say more, and can save.
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
from regpt.distributed.env import exit_process
from regpt.distributed.signals import DUPLICATE_SIGNAL_SECONDS, EXIT_CODES

GRACE = 30.0  # seconds that the main thread has to end after another rank has failed
GRACE_AT_SILENCE = 5.0  # ... and after another rank has fallen silent, which gloo notices as well
GRACE_AT_SIGNAL = 2.0  # ... and after a second signal
FAILURE_KEY = "failure"


class Heartbeat:
    """Beats for its rank; rank 0 watches all others, and they watch rank 0."""

    def __init__(self, rank: int, count: int, store: Store, timeout: float) -> None:
        self.rank, self.count, self.store, self.timeout = rank, count, store, timeout
        self.beats = 0
        self.seen = dict.fromkeys(range(1, count) if rank == 0 else [0], b"")
        self.seen_at = dict.fromkeys(self.seen, time.monotonic())
        self.failed_at = self.signalled_at = 0.0
        self.done = threading.Event()

    def run(self, signals: int) -> None:
        """Until `done`. Signals come as bytes from the file of that number."""
        pause = min(1.0, self.timeout / 8)
        with contextlib.suppress(RuntimeError):  # the store has gone with torchrun: the main thread will say so
            while not self.done.is_set():
                if select.select([signals], [], [], pause)[0]:
                    for number in os.read(signals, 64):
                        self.signal(number)
                self.beat()
                self.check_failure()
                self.check_silence()

    def beat(self) -> None:
        self.beats += 1
        self.store.set(f"beat/{self.rank}", str(self.beats))

    def signal(self, number: int) -> None:
        if number not in EXIT_CODES:
            return
        now = time.monotonic()
        if not self.signalled_at:
            self.signalled_at = now
        elif now - self.signalled_at > DUPLICATE_SIGNAL_SECONDS and not self.done.wait(GRACE_AT_SIGNAL):
            os._exit(128 + number)

    def check_failure(self) -> None:
        """The first rank that failed has left a note; here the main thread may wait for it in vain."""
        if not self.store.check([FAILURE_KEY]):
            return
        now = time.monotonic()
        self.failed_at = self.failed_at or now
        if now - self.failed_at > GRACE:
            self.end(f"another rank has failed: {self.store.get(FAILURE_KEY).decode(errors='replace')}")

    def check_silence(self) -> None:
        now = time.monotonic()
        names = [f"beat/{rank}" for rank in self.seen]
        for rank, name in zip(self.seen, names, strict=True):
            value = self.store.get(name) if self.store.check([name]) else b""
            if value != self.seen[rank]:
                self.seen[rank], self.seen_at[rank] = value, now
            elif now - self.seen_at[rank] > self.timeout + GRACE_AT_SILENCE:
                self.end(f"rank {rank} did not answer within {self.timeout:g} s (run.rank_timeout)")

    def end(self, why: str) -> None:
        if self.done.is_set():
            return
        where = "".join(traceback.format_stack(sys._current_frames()[threading.main_thread().ident or 0]))
        print(f"rank {self.rank} of {self.count} waited here:\n{where}", file=sys.stderr)
        print(f"error: rank {self.rank} of {self.count}: {why} — go on with `regpt resume`", file=sys.stderr)
        exit_process(RANKS)


@contextmanager
def heartbeat(rank: int, count: int, store: Store, timeout: float) -> Iterator[None]:
    """Watch while the block lasts. `store` is a connection of its own, because the main one may be waiting."""
    watch = Heartbeat(rank, count, store, timeout)
    signals, waker = os.pipe()
    os.set_blocking(waker, False)
    before = signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    threading.Thread(target=watch.run, args=(signals,), name="watch", daemon=True).start()
    try:
        yield
    finally:
        watch.done.set()
        signal.set_wakeup_fd(before)
