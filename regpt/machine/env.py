"""How this process was started: alone, or as a rank of torchrun. No other module reads environment variables."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
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
    """Return how torchrun started this process; a single rank if it did not.

    RANK and WORLD_SIZE alone do not tell: other programs leave them in the environment.
    """
    if not is_started_by_torchrun():
        return Launch()

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


def is_started_by_torchrun() -> bool:
    """Return whether torchrun's own variables are set (torch.distributed.elastic.agent sets them for each rank)."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "LOCAL_WORLD_SIZE" in os.environ


def unused_ranks() -> str:
    """Return 'WORLD_SIZE=4' if the environment asks for several ranks but torchrun did not start them; else ''."""
    size = os.environ.get("WORLD_SIZE", "")
    is_unused = size.isdecimal() and int(size) > 1 and not is_started_by_torchrun()
    return f"WORLD_SIZE={size}" if is_unused else ""


def exported_threads(launch: Launch) -> bool:
    """Return whether the user set the number of threads by a variable that PyTorch reads.

    torchrun sets OMP_NUM_THREADS=1 for several ranks, unless its own environment has a value.
    """
    for name in ("MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        value = os.environ.get(name, "")
        if re.fullmatch(r"\s*[1-9]\d*\s*(,.*)?", value):  # others, such as 0, are ignored by PyTorch as well
            if launch.local_ranks == 1 or name == "MKL_NUM_THREADS" or value.strip() != "1":
                return True
            import psutil

            with contextlib.suppress(psutil.Error):
                torchrun = psutil.Process().parent()
                return torchrun is not None and name in torchrun.environ()
    return False


def set_cublas_workspace() -> None:
    """Make cuBLAS add in a fixed order. Call it before the first matrix product on CUDA."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def use_expandable_segments() -> None:
    """Let CUDA's allocator extend its segments: evaluations of many shapes fragment fixed ones.

    Call it before CUDA starts. What the user set in either variable is kept.
    """
    if sys.platform == "linux" and "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def use_huge_pages() -> None:
    """Let torch ask Linux for pages of 2 MiB instead of 4 KiB, for tensors on the CPU.

    Large tensors are new memory in every step, and the first access to a page costs a fault. Call it before the first
    tensor is made. What the user set is kept.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def has_allocator_settings() -> bool:
    """Return whether the user has told the C library of Linux how to get memory."""
    names = ("GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    return any(name in os.environ for name in names)


def visible_cuda_devices() -> str | None:
    """Return CUDA_VISIBLE_DEVICES; None if it is not set. Empty hides all cards."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def with_cuda_devices(devices: str) -> dict[str, str]:
    """Return the environment of a process that sees only these cards; empty: all that this process sees."""
    return {**os.environ, **({"CUDA_VISIBLE_DEVICES": devices} if devices else {})}


def named_command(variable: str) -> list[str]:
    """Return the program that a variable such as CXX names, without its arguments; an empty list without one."""
    return os.environ.get(variable, "").split()[:1]


def disable_lm_eval_multiprocessing() -> None:
    """Its bootstrap forks this process, whose threads (torch's, tokenizers') may hold locks: now and then it hangs."""
    os.environ.setdefault("DISABLE_MULTIPROC", "1")


def open_standard_streams() -> None:
    """Connect closed standard streams to the null device; else files of a run would get their numbers."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # Python found it closed
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115  to the end


def ignore_empty_terminal_size() -> None:
    """Remove COLUMNS=0 and LINES=0, with which rich prints nothing."""
    for name in ("COLUMNS", "LINES"):
        if not os.environ.get(name, "1").strip().strip("0"):
            del os.environ[name]


@contextlib.contextmanager
def without_matplotlib_backend() -> Iterator[None]:
    """Hide MPLBACKEND while matplotlib is imported; afterwards it applies to the user's own figures, if it can."""
    backend = os.environ.pop("MPLBACKEND", "")
    try:
        yield
    finally:
        if backend:
            os.environ["MPLBACKEND"] = backend
    if backend and "matplotlib" in sys.modules:
        with contextlib.suppress(ValueError):
            sys.modules["matplotlib"].rcParams["backend"] = backend


def exit_process(code: int) -> NoReturn:
    """End this rank at once, without clean-up: gloo's threads and the interpreter can wait for each other forever."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    os._exit(code)
