"""A regpt command in a terminal of its own (a pty), which a test types into. Forked, as in `forked.py`."""

import os
import pty
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess

import psutil

from tests.conftest import wait_until
from tests.helpers.ranks import PROCESSES, start_server

CONTROL_C, CONTROL_D = "\x03", "\x04"


class TypedProgram:
    """A program in a terminal: `type` keys, and read what it shows."""

    def __init__(self, process: ForkServerProcess, keyboard: int) -> None:
        self.process, self.keyboard = process, keyboard
        self.shown = ""

    def type(self, keys: str) -> None:
        """Type once the program waits for input or sleeps.

        Python does not see a Ctrl-C between showing the prompt and reading until the next key is pressed.
        """
        wait_until(lambda: psutil.Process(self.process.pid).status() == psutil.STATUS_SLEEPING)
        os.write(self.keyboard, keys.encode())

    def wait_for(self, text: str, seconds: float = 30.0) -> str:
        """Return what was shown up to `text`, which is then forgotten. Fail the test if it does not come."""
        until = time.monotonic() + seconds
        while text not in self.shown and time.monotonic() < until and self.read(0.1):
            pass
        before, found, self.shown = self.shown.partition(text)
        assert found, f"{text!r} was not shown, but {before!r}"
        return before

    def rest(self) -> str:
        """Return all that a program which has ended showed since."""
        while select.select([self.keyboard], [], [], 0.0)[0] and self.read(0.0):
            pass
        return self.shown

    def read(self, seconds: float) -> bool:
        """Read what is shown within some time; return False once the program has closed the terminal."""
        if select.select([self.keyboard], [], [], seconds)[0]:
            try:
                self.shown += os.read(self.keyboard, 4096).decode(errors="replace")
            except OSError:  # Linux
                return False
        return True

    def exit_code(self, seconds: float = 30.0) -> int:
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"the program hangs: {self.shown!r}"
        return self.process.exitcode


@contextmanager
def typed_program(words: Sequence[str], plant: Callable[[], None]) -> Iterator[TypedProgram]:
    """Start the command `regpt` with these arguments; the process calls `plant()` first, and is killed at the end."""
    start_server()
    keyboard, screen = pty.openpty()
    process = PROCESSES.Process(target=run_in_terminal, args=(list(words), os.ttyname(screen), plant))
    process.start()
    try:
        yield TypedProgram(process, keyboard)
    finally:
        process.kill()
        process.join()
        os.close(screen)
        os.close(keyboard)


def run_in_terminal(words: list[str], terminal: str, plant: Callable[[], None]) -> None:
    from regpt.cli.main import main

    os.setsid()
    for number in range(3):
        os.dup2(os.open(terminal, os.O_RDWR), number)  # the first one opened becomes the controlling terminal
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode) for number, mode in enumerate(("r", "w", "w")))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    plant()
    sys.exit(main(words))
