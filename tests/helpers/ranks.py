"""Run a regpt command on several ranks.

Each rank is forked from a process that has imported torch already, and gets the environment variables that torchrun
sets. torchrun starts an interpreter for each rank, which takes seconds.
"""

import contextlib
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from multiprocessing.forkserver import _forkserver
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

ROOT = Path(__file__).parent.parent.parent
fork_server: Any = _forkserver  # of this process; Python has no public interface that stops it
PROCESSES = multiprocessing.get_context("forkserver")
STORES: list[TCPStore] = []
server_pid: int | None = None


@dataclass(frozen=True)
class Outcome:
    """The exit code of a rank, and what it printed."""

    code: int
    output: str


def start_server() -> None:
    """Start the process that ranks are forked from, once.

    Python has one fork server per process. One that `regpt prepare` started in this process has not imported torch.
    """
    global server_pid
    if server_pid is not None and fork_server._forkserver_pid == server_pid:
        return
    fork_server._stop()
    PROCESSES.set_forkserver_preload(["tests.helpers.preload"])
    with contextlib.chdir(ROOT):  # where it finds `tests`
        fork_server.ensure_running()
    server_pid = fork_server._forkserver_pid


def start_ranks(
    count: int, words: Sequence[str], folder: Path, plant: Callable[[int], None] | None = None
) -> list[ForkServerProcess]:
    """Start the command `words` on `count` ranks. Each rank calls `plant(rank)` first."""
    start_server()
    folder.mkdir(parents=True, exist_ok=True)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    STORES.append(store)  # keeps it alive as long as this process, as torchrun's is
    port = store.port
    ranks = [
        PROCESSES.Process(target=run_rank, args=(rank, count, port, list(words), str(folder), plant))
        for rank in range(count)
    ]
    for rank in ranks:
        rank.start()
    return ranks


def outcomes(ranks: list[ForkServerProcess], folder: Path, seconds: float) -> list[Outcome]:
    """Wait for all ranks and return their outcomes. Fail the test if one takes longer than `seconds`."""
    for process in ranks:
        process.join(seconds)
    late = [number for number, process in enumerate(ranks) if process.is_alive()]
    for process in ranks:
        with contextlib.suppress(ValueError):
            process.kill()
    texts = [(folder / f"rank{number}").read_text(errors="replace") for number in range(len(ranks))]
    assert not late, f"ranks {late} hang: {texts}"
    return [Outcome(process.exitcode or 0, text) for process, text in zip(ranks, texts, strict=True)]


def run_ranks(
    count: int,
    words: Sequence[str],
    folder: Path,
    plant: Callable[[int], None] | None = None,
    seconds: float = 180,  # compiling takes a minute on a busy machine
) -> list[Outcome]:
    """Run the command `words` on `count` ranks, and return their outcomes by rank."""
    return outcomes(start_ranks(count, words, folder, plant), folder, seconds)


def run_rank(
    rank: int, count: int, port: int, words: list[str], folder: str, plant: Callable[[int], None] | None
) -> None:
    """Run one rank in its own process, its output in the file `folder`/rankN, and exit with the command's code."""
    output = os.open(f"{folder}/rank{rank}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    from regpt.cli.main import main

    try:
        if plant is not None:
            plant(rank)
        code = main(words)
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
