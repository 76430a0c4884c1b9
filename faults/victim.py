"""A regpt command in a process of its own, forked so that it starts at once, and killed when and where one likes.

The parent imports torch and computes nothing, so it has no threads that a fork would lose.
"""

import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regpt.interop.huggingface
import regpt.report.page
import regpt.train.reproduce  # noqa: F401  all that a command needs is imported before the fork
from regpt.cli.main import main

KILLED = -signal.SIGKILL


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code, or a negative signal; and all that it printed."""

    code: int
    output: str
    seconds: float


def run(words: Sequence[str], plant: Callable[[], None] | None = None, kill_after: float | None = None) -> Outcome:
    """Carry out a command; `plant` is called before it, in its process; it is killed after so many seconds."""
    began_at = time.monotonic()
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            os._exit(in_the_child(words, plant, output.fileno()))
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        text = output.read().decode(errors="replace")
    return Outcome(os.waitstatus_to_exitcode(status), text, time.monotonic() - began_at)


def in_the_child(words: Sequence[str], plant: Callable[[], None] | None, output: int) -> int:
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    try:
        if plant is not None:
            plant()
        code = main(list(words))
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(
    owner: Any, name: str, number: int, act: Callable[[], None], *, after: bool = False, only: str = ""
) -> None:
    """Act before (or after) the so-manieth call of `owner.name`; `only` counts calls whose first argument holds it."""
    real, calls = getattr(owner, name), 0

    def counted(*arguments: Any, **settings: Any) -> Any:
        nonlocal calls
        counts = not only or only in str(arguments[0])
        calls += counts
        due = counts and calls == number
        if due and not after:
            act()
        result = real(*arguments, **settings)
        if due and after:
            act()
        return result

    setattr(owner, name, counted)


def checkpoint_folders(run: Path) -> list[Path]:
    folder = run / "checkpoints"
    return sorted(folder.iterdir()) if folder.exists() else []
