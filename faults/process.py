"""Run a regpt command in a forked process, with a fault injected, and kill it at a chosen moment.

Forking saves the time of the imports. The parent must not compute with torch: a fork does not copy its threads.
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
import regpt.reporting.page
import regpt.training.reproduce  # noqa: F401  import everything before the fork
from regpt.cli.main import main

KILLED = -signal.SIGKILL


@dataclass(frozen=True)
class Outcome:
    """The exit code of a command (negative: killed by a signal), its output and its duration."""

    code: int
    output: str
    seconds: float


def run(arguments: Sequence[str], inject: Callable[[], None] | None = None, kill_after: float | None = None) -> Outcome:
    """Run a command; call `inject` first, in its process; kill it after `kill_after` seconds if given."""
    began_at = time.monotonic()
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            os._exit(run_child(arguments, inject, output.fileno()))
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        text = output.read().decode(errors="replace")
    return Outcome(os.waitstatus_to_exitcode(status), text, time.monotonic() - began_at)


def run_child(arguments: Sequence[str], inject: Callable[[], None] | None, output: int) -> int:
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    try:
        if inject is not None:
            inject()
        code = main(list(arguments))
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(
    owner: Any, name: str, number: int, act: Callable[[], None], *, after: bool = False, only: str = ""
) -> None:
    """Replace `owner.name` so that its call number `number` runs `act` before or after it.

    With `only`, calls count only if their first argument contains that text.
    """
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
