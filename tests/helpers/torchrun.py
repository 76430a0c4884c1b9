"""Start torchrun: as a command, or forked from a process that has imported torch already.

The forked one runs torchrun's own main function, agent and restarts. Only the start of its ranks differs: it forks
them instead of starting an interpreter for each, which takes seconds.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

from tests.helpers.forked import Program, print_into
from tests.helpers.ranks import PROCESSES, start_server


def torchrun_words(module: Sequence[str], words: Sequence[str], restarts: int) -> list[str]:
    """Return the arguments of torchrun for two ranks of a Python module with these arguments."""
    return ["--standalone", "--nproc_per_node=2", f"--max-restarts={restarts}", "-m", *module, *words]


class Agent(Program):
    """A process of torchrun."""

    def rank_pids(self) -> list[int]:
        """Return the ids of the ranks' processes; torchrun starts them in the order of the ranks."""
        children = psutil.Process(self.pid).children()
        ranks = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
        return [child.pid for child in sorted(ranks, key=lambda child: (child.create_time(), child.pid))]


def start_command(words: Sequence[str], printed: Path, *, module: Sequence[str] = ("regpt",)) -> Agent:
    """Start torchrun as a user does."""
    command = [sys.executable, "-m", "torch.distributed.run", *torchrun_words(module, words, 0)]
    with printed.open("w") as file:
        return Agent(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT), printed)


def fork_agent(words: Sequence[str], printed: Path, *, module: Sequence[str] = ("regpt",), restarts: int = 0) -> Agent:
    """Start torchrun in a process of the fork server."""
    start_server()
    printed.touch()
    arguments = torchrun_words(module, words, restarts)
    process = PROCESSES.Process(target=run_agent, args=(arguments, str(printed)))
    process.start()
    return Agent(process, printed)


class ForkedRank:
    """A rank's process, with the part of `subprocess.Popen` that torchrun uses."""

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        self.process = multiprocessing.get_context("fork").Process(target=run_module, args=(command, environment))
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float) -> None:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("a forked rank", timeout)

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)


def run_agent(arguments: list[str], printed: str) -> None:
    """Run torchrun's main function in this process, with forked ranks."""
    print_into(printed)
    SubprocessHandler._popen = lambda _, command, environment: ForkedRank(command, environment)  # type: ignore
    torchrun.main(arguments)


def run_module(command: Sequence[str], environment: dict[str, str]) -> None:
    """Do in a forked process what the command `python -u -m MODULE ARGUMENTS…` does."""
    os.setsid()
    os.environ |= environment
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):  # not torchrun's handlers
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert command[1:3] == ("-u", "-m")
    sys.argv = list(command[3:])
    runpy.run_module(command[3], run_name="__main__", alter_sys=True)
