"""Out of memory: recognize the error, and choose a smaller micro-batch."""

import gc

import torch

from regpt.base.errors import UserError
from regpt.recipe.recipe import Recipe

# Steps of an attempt after which memory use no longer grows: the optimizer's moments are allocated too.
OOM_RETRY_STEPS = 3
OOM_MESSAGES = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")  # of CUDA and MPS, CPU, cuBLAS


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device or the machine has no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OOM_MESSAGES)


def smaller_micro_batch(recipe: Recipe, ranks: int) -> int:
    """Return half of the recipe's micro-batch, or the largest size below that divides a rank's share of every step.

    Raises UserError if the micro-batch is one sequence already.
    """
    share = recipe.common_windows // ranks
    smaller = [size for size in range(1, recipe.data.micro_batch // 2 + 1) if share % size == 0]
    if not smaller:
        remedies = [] if recipe.run.activation_checkpointing else ["run.activation_checkpointing=true"]
        remedies += ["run.parallel=fsdp on several GPUs"] if recipe.run.parallel == "ddp" else ["more ranks"]
        raise UserError(
            f"out of memory with data.micro_batch = {recipe.data.micro_batch} and model.block_size ="
            f" {recipe.model.block_size:,}",
            f"`regpt plan` shows what uses how much memory; use less with {', '.join(remedies)}, or a smaller model",
        )
    return smaller[-1]


def release_memory(kind: str, compiled: bool) -> None:
    """Free the memory of a failed step on a kind of device, and discard what was compiled for its shapes."""
    gc.collect()
    if kind == "cuda":
        torch.cuda.empty_cache()
    elif kind == "mps":
        torch.mps.empty_cache()
    if compiled:
        torch.compiler.reset()
