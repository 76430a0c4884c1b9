"""Programs forked from a process that has imported torch already; an interpreter that imports it takes seconds."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tests.helpers.ranks import PROCESSES, Outcome, start_server


class Program:
    """A process, forked or not, and what it prints into a file."""

    def __init__(self, process: "subprocess.Popen[bytes] | ForkServerProcess", printed: Path) -> None:
        self.process, self.printed = process, printed
        assert process.pid is not None
        self.pid = process.pid

    def output(self) -> str:
        """Return what has been printed so far."""
        return self.printed.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def outcome(self, seconds: float) -> Outcome:
        """Wait for the end. Fail the test if it takes longer than `seconds`."""
        if isinstance(self.process, subprocess.Popen):
            return Outcome(self.process.wait(seconds), self.output())
        self.process.join(seconds)
        if (code := self.process.exitcode) is None:
            self.process.kill()
            raise AssertionError(f"the process hangs: {self.output()}")
        return Outcome(code, self.output())


def print_into(printed: str) -> None:
    """Append the output of this process, and of those that it starts, to a file."""
    output = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))


def fork_command(words: Sequence[str], printed: Path) -> Program:
    """Start the command `regpt` with these arguments."""
    start_server()
    printed.touch()
    process = PROCESSES.Process(target=run_command, args=(list(words), str(printed)))
    process.start()
    return Program(process, printed)


def run_command(words: list[str], printed: str) -> None:
    from regpt.cli.main import main

    print_into(printed)
    sys.exit(main(words))
