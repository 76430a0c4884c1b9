"""How this process was started: alone, or as a rank of torchrun. No other module reads environment variables."""

import contextlib
import os
import sys
from dataclasses import dataclass
from typing import NoReturn


@dataclass(frozen=True)
class Launch:
    """What torchrun tells this process (https://docs.pytorch.org/docs/stable/elastic/run.html)."""

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0  # on this machine
    local_ranks: int = 1
    elastic: bool = False  # whether torchrun restarts all ranks when one fails


def current_launch() -> Launch:
    def number(name: str, otherwise: int) -> int:
        text = os.environ.get(name, "")
        return int(text) if text.isdecimal() else otherwise

    return Launch(
        rank=number("RANK", 0),
        ranks=number("WORLD_SIZE", 1),
        local_rank=number("LOCAL_RANK", 0),
        local_ranks=number("LOCAL_WORLD_SIZE", 1),
        elastic=number("TORCHELASTIC_MAX_RESTARTS", 0) > 0,
    )


def set_cublas_workspace() -> None:
    """Make cuBLAS add in a fixed order. Call it before the first matrix product on CUDA."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def disable_lm_eval_multiprocessing() -> None:
    """Its bootstrap forks this process, whose threads (torch's, tokenizers') may hold locks: now and then it hangs."""
    os.environ.setdefault("DISABLE_MULTIPROC", "1")


def exit_process(code: int) -> NoReturn:
    """End this rank at once, without clean-up: gloo's threads and the interpreter can wait for each other forever."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    os._exit(code)
