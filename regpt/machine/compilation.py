"""Whether torch.compile can work on this machine, and what is missing.

It generates code for a device, which a compiler of this machine has to build: Triton and a C compiler for CUDA, a C++
compiler for the CPU. Triton and inductor also include Python.h. If something is missing, it fails at the first step.
"""

import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from regpt.base.errors import UserError
from regpt.machine.env import named_command
from regpt.machine.oom import is_out_of_memory

TRITON_CAPABILITY = (7, 0)  # the oldest cards that Triton generates code for


@dataclass(frozen=True)
class Obstacle:
    """Why torch.compile cannot work, and the remedy."""

    problem: str
    fix: str


def find_obstacle(kind: str) -> Obstacle | None:
    """Return what keeps torch.compile from working on a kind of device ('cpu', 'cuda', 'mps'); None if nothing."""
    if kind == "mps":
        return None  # its code is compiled by the system
    if kind == "cuda":
        capability = torch.cuda.get_device_capability()
        if capability < TRITON_CAPABILITY:
            has, needs = (".".join(map(str, version)) for version in (capability, TRITON_CAPABILITY))
            return Obstacle(f"Triton needs compute capability {needs}, this card has {has}", "set run.compile=off")
        if not has_triton():
            return Obstacle("the package triton is missing", "pip install triton (on Windows: triton-windows)")
    if not find_compiler(("CC", "gcc", "clang", "cc", "cl") if kind == "cuda" else ("CXX", "g++", "clang++", "cl")):
        return Obstacle(
            f"there is no {'C' if kind == 'cuda' else 'C++'} compiler", "apt install g++, or name one in CXX"
        )
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return Obstacle("Python.h is missing", "apt install python3-dev")
    return None


def has_triton() -> bool:
    from torch.utils._triton import has_triton

    return bool(has_triton())


def find_compiler(names: tuple[str, ...]) -> str | None:
    """Return the path of the first compiler that exists. The first name is that of a variable which may name one."""
    variable, *commands = names
    return next(filter(None, map(shutil.which, [*named_command(variable), *commands])), None)


def choose_compilation(wanted: str, kind: str) -> tuple[bool, str]:
    """Return whether to compile, and a note if `auto` would but cannot. Raises UserError if 'on' cannot work."""
    if wanted == "off" or (wanted == "auto" and kind != "cuda"):
        return False, ""
    obstacle = find_obstacle(kind)
    if obstacle is None:
        return True, ""
    if wanted == "on":
        raise UserError(
            f"run.compile = 'on' cannot work: {obstacle.problem}", f"{obstacle.fix}; or set run.compile=off"
        )
    return False, f"without torch.compile, which is slower: {obstacle.problem}; {obstacle.fix}"


@contextmanager
def compilation_errors() -> Iterator[None]:
    """Turn an error of torch.compile, except out of memory, into a UserError with the remedy."""
    try:
        yield
    except Exception as error:
        if not is_compilation_error(error) or is_out_of_memory(error):
            raise
        raise UserError(f"torch.compile failed: {cause(error)[:300]}", "set run.compile=off") from error


def cause(error: Exception) -> str:
    """Return the first line that tells the cause: the very first one may only name the backend that raised it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.endswith("raised:")]
    return lines[0] if lines else type(error).__name__


def is_compilation_error(error: Exception) -> bool:
    """Return whether an error was raised by torch.compile's own modules, which are not imported without it."""
    return any(kind.__module__.startswith(("torch._dynamo", "torch._inductor")) for kind in type(error).__mro__)
