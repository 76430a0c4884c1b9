"""The device of a rank: precision, threads, peak rate, seeds, memory."""

import contextlib
import hashlib
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import torch

from regpt.base.cards import Card, card_of_device
from regpt.base.errors import UserError
from regpt.machine import limits
from regpt.machine.allocator import keep_freed_memory
from regpt.machine.compilation import choose_compilation
from regpt.machine.env import (
    Launch,
    current_launch,
    exported_threads,
    set_cublas_workspace,
    use_expandable_segments,
)
from regpt.machine.limits import usable_cores, usable_processors
from regpt.machine.nvidia import idle_cards_note, refuse_card_without_kernels, refuse_unusable_card
from regpt.machine.products import product, shared_casts
from regpt.recipe.run_settings import RunRecipe

PEAK_MEASUREMENTS, PEAK_SPREAD = 5, 0.1


@dataclass(frozen=True)
class Device:
    """Where and how a run computes."""

    torch_device: torch.device
    name: str  # the manufacturer's name
    precision: torch.dtype  # of matrix products: bfloat16 by autocast, or float32
    compiled: bool
    peak_flops: float  # per second; 0: unknown
    peak_source: str  # where that figure comes from, or why it is missing
    peak_measurements: int = 0  # that agreed; 0: from a table
    notes: tuple[str, ...] = ()  # what the user should know about the choice

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.precision == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.torch_device.type, self.precision)

    @contextlib.contextmanager
    def shared_casts(self) -> Iterator[None]:
        """Let all passes in this context share the weights that are cast, which nothing may change meanwhile."""
        with self.autocast(), shared_casts():
            yield

    def without_autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the context of a backward pass inside that of `autocast`: it computes in the types of its inputs."""
        return torch.autocast(self.torch_device.type, enabled=False)

    def synchronize(self) -> None:
        """Wait until the device has finished its queued work, so that timings are correct."""
        if self.torch_device.type == "cuda":
            torch.cuda.synchronize()
        elif self.torch_device.type == "mps":
            torch.mps.synchronize()

    @property
    def precision_name(self) -> str:
        return str(self.precision).removeprefix("torch.")


def open_device(recipe: RunRecipe) -> Device:
    """Return this rank's device, set up as the recipe asks. Raises UserError if the machine lacks it."""
    launch = current_launch()
    use_expandable_segments()
    if recipe.device == "auto":
        refuse_unusable_card()
    kind = recipe.device if recipe.device != "auto" else best_device()
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[kind]:
        raise UserError(
            f"run.device = '{kind}' is not available on this machine", f"use run.device={best_device()} or auto"
        )
    set_threads(recipe.threads, launch)
    torch.set_float32_matmul_precision(recipe.matmul_precision)
    if recipe.deterministic:
        set_cublas_workspace()
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # all of it is overwritten
    device = device_of_rank(kind, launch)
    notes = [idle_cards_note(launch.ranks)] if recipe.device in ("auto", "cuda") else []
    if kind == "cuda":
        refuse_card_without_kernels()
    if kind == "cpu":
        keep_freed_memory()
    compiled, note = choose_compilation(recipe.compile, kind)
    precision = choose_precision(recipe.precision, kind)
    peak = peak_rate(device, precision)
    return Device(
        torch_device=device,
        name=device_name(kind),
        precision=precision,
        compiled=compiled,
        peak_flops=peak.flops,
        peak_source=peak.source,
        peak_measurements=peak.measurements,
        notes=tuple(filter(None, [*notes, note])),
    )


def open_device_for_evaluation(recipe: RunRecipe) -> Device:
    """Return the device as `open_device` does, but compile only where the recipe asks for it.

    An evaluation has many shapes and takes seconds on a GPU; compiling takes longer.
    """
    return open_device(replace(recipe, compile="on" if recipe.compile == "on" else "off"))


def set_threads(wanted: int, launch: Launch) -> None:
    """Set the number of CPU threads: `wanted`, or if it is 0 what the user exported, or else one per usable core.

    The ranks of this machine share its cores.
    """
    if wanted:
        torch.set_num_threads(wanted)
    elif exported_threads(launch):
        pass  # PyTorch has read it
    elif launch.local_ranks > 1:  # torchrun gives each rank a single one
        torch.set_num_threads(usable_cores(launch.local_ranks))
    elif torch.get_num_threads() > usable_processors():  # PyTorch does not know of a container's limit
        torch.set_num_threads(usable_processors())


def best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def local_device_count(recipe: RunRecipe) -> int:
    """Return the number of ranks that this machine has a device for, if the recipe does not ask for the CPU."""
    return max(1, torch.cuda.device_count()) if recipe.device in ("auto", "cuda") else 1


def device_of_rank(kind: str, launch: Launch) -> torch.device:
    """Return this rank's device of that kind: on CUDA the card with its local rank."""
    if kind == "mps" and launch.ranks > 1:
        raise UserError(f"run.device = 'mps' is one device, torchrun started {launch.ranks} ranks", "start one")
    if kind != "cuda" or launch.ranks == 1:
        return torch.device(kind)
    if launch.local_ranks > torch.cuda.device_count():
        raise UserError(
            f"this machine has {torch.cuda.device_count()} cards for {launch.local_ranks} ranks",
            f"use --nproc_per_node={torch.cuda.device_count()}",
        )
    torch.cuda.set_device(launch.local_rank)
    return torch.device(kind, launch.local_rank)


def choose_precision(wanted: str, kind: str) -> torch.dtype:
    """bfloat16 where the hardware multiplies it fast, else float32.

    That is CUDA from Ampere on, and CPUs with AMX. AVX512-BF16 alone is faster than float32 on AMD's, and half as fast
    on Intel's (docs/log.md has both measurements).
    """
    if wanted != "auto":
        return {"bfloat16": torch.bfloat16, "float32": torch.float32}[wanted]
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability()[0] >= 8 else torch.float32
    if kind == "cpu":
        has = torch.cpu.get_capabilities()
        is_amd = "AMD" in str(has.get("cpu_name", ""))
        return torch.bfloat16 if has.get("amx_bf16") or (has.get("avx512_bf16") and is_amd) else torch.float32
    return torch.float32


def device_name(kind: str) -> str:
    """Return the model of the device; for a CPU also the number of threads."""
    threads = torch.get_num_threads()
    return device_model(kind) + (f", {threads} thread{'s' if threads != 1 else ''}" if kind == "cpu" else "")


def device_model(kind: str) -> str:
    if kind == "cuda":
        return torch.cuda.get_device_name()
    if kind == "mps":
        return f"Apple {platform.machine()} GPU"
    return torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine()


@dataclass(frozen=True)
class Peak:
    """The peak rate of a device."""

    flops: float  # per second; 0: unknown
    source: str
    measurements: int = 0  # that agreed; 0: from a table


@cache
def peak_rate(device: torch.device, precision: torch.dtype) -> Peak:
    """Return the peak of the device: from a table for known cards, else measured several times.

    Measurements that differ by more than a tenth were taken next to other work and are not used.
    """
    card = known_card(device)
    if card is not None and f"torch.{card.precision}" == str(precision):
        return Peak(card.peak, f"published for {card.name}")
    rates = [measure_matmul_rate(device, precision) for _ in range(PEAK_MEASUREMENTS)]
    spread = 1 - min(rates) / max(rates)
    if spread > PEAK_SPREAD:
        return Peak(0.0, f"{PEAK_MEASUREMENTS} measurements differ by {100 * spread:.0f} %")
    return Peak(max(rates), f"the best of {PEAK_MEASUREMENTS} measurements, large matrix products", PEAK_MEASUREMENTS)


def known_card(device: torch.device) -> Card | None:
    """Return the data-sheet figures of this device; None if it is not a known card."""
    if device.type != "cuda":
        return None
    about = torch.cuda.get_device_properties(device)
    return card_of_device(about.name, about.total_memory / 1e9)


def measure_matmul_rate(device: torch.device, precision: torch.dtype, seconds: float = 0.1) -> float:
    """Return the best rate, in FLOP/s, of square matrix products repeated for `seconds`."""
    size, products = (1024, 1) if device.type == "cpu" else (4096, 8)  # a GPU needs more to be busy
    left, right = (torch.randn(size, size, device=device).to(precision) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        started_at = time.perf_counter()
        for _ in range(products):
            result = product(left, right)
        result[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - started_at)
    return 2 * size**3 * products / best


def seed_micro_batch(seed: int, step: int, number: int) -> None:
    """Seed the dropout of a micro-batch with (seed, step, index in the global batch).

    So a resume needs no generator state, and any rank may compute the micro-batch.
    """
    digest = hashlib.blake2b(f"regpt step|{seed}|{step}|{number}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)


def memory_bytes(device: torch.device) -> int:
    """Return the memory of this process in bytes: on CUDA the peak of the device's, else the process's memory now.

    0, unknown, without psutil.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import psutil
    except ImportError:
        return 0
    return int(psutil.Process().memory_info().rss)


def reset_peak_memory(device: torch.device) -> None:
    """Forget the peak memory of a CUDA device so far. That of a process cannot be forgotten."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory of this process in bytes: on CUDA the device's, else the process's own."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reserved_bytes(device: torch.device) -> int:
    """Return the most that the CUDA allocator held, in bytes: what counts when memory runs out. 0 without a card."""
    return torch.cuda.max_memory_reserved() if device.type == "cuda" else 0


def free_memory(device: torch.device) -> float:
    """Return the free memory in bytes: on CUDA the card's, else what this process may still take."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return limits.free_memory()
