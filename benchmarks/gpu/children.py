"""Commands of regpt in processes of their own, with faults planted: kills, signals, NaN, a card with less memory.

A process is forked from one that has imported torch and regpt but never used a device.
"""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

import regpt.cli.main
import regpt.training.start  # so that it is loaded before processes are forked
from regpt.data.batches import Batch
from regpt.machine import device, oom
from regpt.training import recovery
from regpt.training.gradients import Gradients

PROCESSES: Any = multiprocessing.get_context("forkserver" if sys.platform != "win32" else "spawn")
CRASHED = 70  # exit code of an exception that the command does not handle


@dataclass(frozen=True)
class Plant:
    """Faults planted in a process. Steps count from 0."""

    kill_at: int = -1  # SIGKILL in this step
    terminate_at: int = -1  # SIGTERM in this step, after `terminate_after` seconds
    terminate_after: float = 0.0
    nan_at: int = -1  # the loss of the first micro-batch and a gradient are NaN in this step
    card_share: float = 1.0  # of the card's memory that the process may use
    most_windows: int = 0  # of a micro-batch, above which memory runs out; 0: what really fits
    without_caches: bool = False  # torch.compile generates all code again
    memory_log: Path | None = None  # gets the reserved bytes: before the first step, when memory ran out, once released


@dataclass(frozen=True)
class Ended:
    """The exit code of a process (negative: the signal that killed it), and what it printed."""

    code: int
    output: str


class Child:
    """A command of regpt that runs in a process of its own."""

    started: ClassVar[list["Child"]] = []

    def __init__(self, words: Sequence[str], log: Path, plant: Plant | None = None) -> None:
        PROCESSES.set_forkserver_preload([__name__])
        self.log = log
        self.process = PROCESSES.Process(target=run_planted, args=(list(words), str(log), plant or Plant()))
        self.process.start()
        self.started.append(self)

    def end(self) -> Ended:
        """Wait for the end of the process."""
        self.process.join()
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return Ended(self.process.exitcode or 0, text)

    @classmethod
    def kill_all(cls) -> None:
        """Kill the processes that still run: those of a section that was stopped."""
        while cls.started:
            process = cls.started.pop().process
            if process.is_alive():
                process.kill()
            process.join()


def run_planted(words: list[str], log: str, plant: Plant) -> None:
    """Run a command in this process, its output in a file, and exit with its code."""
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    try:
        plant_faults(plant)
        code = regpt.cli.main.main(words)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else CRASHED
    except BaseException:
        traceback.print_exc()
        code = CRASHED
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def plant_faults(plant: Plant) -> None:
    """Change what this process does in the steps that the plant names."""
    if plant.without_caches:
        import torch._inductor.config as inductor

        inductor.force_disable_caches = True
    if not torch.cuda.is_available():
        device.PEAK_MEASUREMENTS = 1  # no section needs a CPU's peak, which takes half a second
    if plant.card_share < 1:
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # as a run sets it
        torch.cuda.set_per_process_memory_fraction(plant.card_share)
    if plant.memory_log:
        log_memory_around_release(plant.memory_log)
    original = Gradients.forward_and_backward

    def planted(self: Gradients, step: int, batch: Batch, weight: float = 1.0) -> Tensor:
        if plant.memory_log and not plant.memory_log.exists():
            log_memory(plant.memory_log)
        if plant.most_windows and batch.inputs.shape[1] > plant.most_windows:
            raise torch.OutOfMemoryError("planted: out of memory")
        if step == plant.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == plant.terminate_at:
            threading.Timer(plant.terminate_after, os.kill, (os.getpid(), signal.SIGTERM)).start()
        losses = original(self, step, batch, weight)
        if step == plant.nan_at:
            losses[0] = float("nan")
            self.parallel.gradients()[0].flatten()[0] = float("nan")
        return losses

    Gradients.forward_and_backward = planted  # type: ignore[method-assign]


def log_memory_around_release(log: Path) -> None:
    """Log the reserved memory before and after that of a failed step is released."""
    original = oom.release_memory

    def logged(kind: str, compiled: bool) -> None:
        log_memory(log)
        original(kind, compiled)
        log_memory(log)

    recovery.release_memory = logged  # type: ignore[attr-defined]


def log_memory(log: Path) -> None:
    """Add a line with what CUDA's allocator holds, in bytes; 0 without a card."""
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{torch.cuda.memory_reserved() if torch.cuda.is_available() else 0}\n")
