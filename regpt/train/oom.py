"""A micro-batch that does not fit into memory: how that is recognized, and which one is tried next."""

import gc

import torch

from regpt.base.errors import UserError
from regpt.base.recipe import Recipe
from regpt.distributed.device import Device

OOM_RETRY_STEPS = 3  # of an attempt: by then the optimizer's moments lie beside a micro-batch's activations
OOM_MESSAGES = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")  # MPS, CPU, cuBLAS


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OOM_MESSAGES)


def smaller_micro_batch(recipe: Recipe, ranks: int) -> int:
    """Half of the recipe's, or the next below that into which a rank's share of the batch divides.

    Raises UserError where it is one sequence already.
    """
    share = recipe.batch_windows // ranks
    smaller = [size for size in range(1, recipe.data.micro_batch // 2 + 1) if share % size == 0]
    if not smaller:
        remedies = [] if recipe.run.activation_checkpointing else ["run.activation_checkpointing=true"]
        remedies += ["run.parallel=fsdp on several cards"] if recipe.run.parallel == "ddp" else ["more ranks"]
        raise UserError(
            f"out of memory with data.micro_batch = {recipe.data.micro_batch} and model.block_size ="
            f" {recipe.model.block_size:,}",
            f"`regpt plan` says what takes how much; less take {', '.join(remedies)}, or a smaller model",
        )
    return smaller[-1]


def release_memory(device: Device) -> None:
    """Give back what a failed step has left, and forget what was compiled for its shapes."""
    gc.collect()
    if device.torch_device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.torch_device.type == "mps":
        torch.mps.empty_cache()
    if device.compiled:
        torch.compiler.reset()
