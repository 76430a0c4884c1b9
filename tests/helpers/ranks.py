"""A regpt command on several ranks, each forked from a process that has torch at hand and told what torchrun tells."""

import contextlib
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.distributed import TCPStore

PROCESSES = multiprocessing.get_context("forkserver")
STORES: list[TCPStore] = []
PROCESSES.set_forkserver_preload(["regpt.train.reproduce", "regpt.cli.main", "tests.conftest"])


@dataclass(frozen=True)
class Outcome:
    """How a rank ended, and what it printed."""

    code: int
    output: str


def start_ranks(
    count: int, words: Sequence[str], folder: Path, plant: Callable[[int], None] | None = None
) -> "list[multiprocessing.context.ForkServerProcess]":
    """Start a command on so many ranks; `plant(rank)` is called before it, in each rank's process."""
    folder.mkdir(parents=True, exist_ok=True)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    STORES.append(store)  # lives as long as we do, as torchrun's does
    port = store.port
    ranks = [
        PROCESSES.Process(target=one_rank, args=(rank, count, port, list(words), str(folder), plant))
        for rank in range(count)
    ]
    for rank in ranks:
        rank.start()
    return ranks


def outcomes(ranks: "list[multiprocessing.context.ForkServerProcess]", folder: Path, seconds: float) -> list[Outcome]:
    """Wait for all; fails when one takes far too long."""
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
    seconds: float = 60,
) -> list[Outcome]:
    return outcomes(start_ranks(count, words, folder, plant), folder, seconds)


def one_rank(
    rank: int, count: int, port: int, words: list[str], folder: str, plant: Callable[[int], None] | None
) -> None:
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
