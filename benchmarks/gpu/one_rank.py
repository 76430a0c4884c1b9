"""DDP and FSDP on one rank: NCCL on a card, gloo on a CPU. Losses as without them, weights saved and loaded."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.distributed import HashStore  # type: ignore[attr-defined]

from benchmarks.gpu.bench import Bench, Training, free_memory, relative
from benchmarks.gpu.results import Bound, Measured
from regpt.checkpoint.saver import AsyncCheckpointer
from regpt.data.batches import Batch
from regpt.distributed.dtensor import to_local
from regpt.parallel.model import Parallel
from regpt.parallel.replicated import DDPParallel
from regpt.parallel.sharded import FSDPParallel

STEPS = 4
KINDS: dict[str, type[Parallel]] = {"ddp": DDPParallel, "fsdp": FSDPParallel}
MOST = {torch.float32: 1e-6, torch.bfloat16: 2e-3}


@contextmanager
def process_group(bench: Bench) -> Iterator[None]:
    """Open a process group of one rank without a network."""
    if bench.on_card:
        torch.cuda.set_device(0)
    place = torch.device("cuda", 0) if bench.on_card else None
    dist.init_process_group(
        "nccl" if bench.on_card else "gloo", store=HashStore(), rank=0, world_size=1, device_id=place
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def one_rank(bench: Bench) -> Iterator[Measured]:
    """Train a few steps alone, with DDP and with FSDP, compiled; save the sharded model and load it."""
    recipe = bench.recipe("gpt2-modern", "optimizer.warmup_steps=3", short=True)
    batches = bench.batches(recipe)
    with process_group(bench):
        yield Measured("a gloo group next to it adds up", adds_up_by_gloo(), "", Bound(equal=True))
        for dtype in MOST if bench.on_card else [torch.float32]:
            torch.set_float32_matmul_precision("highest")
            alone = losses_of(bench, Training(bench, recipe, bench.device(recipe, True, dtype)), batches)
            for name, parallel in KINDS.items():
                free_memory()
                training = Training(bench, recipe, bench.device(recipe, True, dtype), parallel)
                losses = losses_of(bench, training, batches)
                largest = max(relative(mine, theirs) for mine, theirs in zip(losses, alone, strict=True))
                about = f"{name}, {str(dtype).removeprefix('torch.')}"
                yield Measured(f"{about}: losses, largest relative difference", largest, "", Bound(most=MOST[dtype]))
                yield Measured(
                    f"{about}: saved and loaded, weights equal",
                    is_restored(bench, training, name),
                    "",
                    Bound(equal=True),
                )
                del training
    torch.set_float32_matmul_precision("high" if bench.on_card else "highest")


def adds_up_by_gloo() -> bool:
    """Return whether a group works that carries the numbers which ranks decide on."""
    number = torch.ones(1)
    try:
        dist.all_reduce(number, group=dist.new_group(backend="gloo"))
    except RuntimeError:
        traceback.print_exc()
        return False
    return float(number) == 1.0


def losses_of(bench: Bench, training: Training, batches: list[Batch]) -> list[float]:
    torch.set_float32_matmul_precision("highest")
    return [training.step(batches[step])[0] for step in range(STEPS)]


def is_restored(bench: Bench, training: Training, name: str) -> bool:
    """Save a checkpoint, overwrite the weights, load it, and return whether they are what they were."""
    folder = bench.folder / f"{name}-{training.device.precision_name}"
    folder.mkdir()
    parallel = training.parallel
    before = [to_local(parameter.detach()).clone() for parameter in parallel.model.parameters()]
    with AsyncCheckpointer(folder, training.recipe.checkpoint) as saver:
        saver.start(STEPS, parallel.model, parallel.optimizer, {}, {})
        saved = saver.collect(wait=True)
    assert saved is not None
    parallel.initialize(2)
    parallel.load(saved.path)
    after = [to_local(parameter.detach()) for parameter in parallel.model.parameters()]
    return all(torch.equal(mine, theirs) for mine, theirs in zip(after, before, strict=True))
