"""Evaluate a model without changing it."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

# Attention by cuDNN, the default on H100 and B200 since torch 2.11, prepares a plan for every new shape, which takes
# longer than the attention itself where shapes vary (FunASR issue 3704: 0.44 s each).
ATTENTION_OF_ANY_SHAPE = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, with attention for many shapes, and back into its earlier mode afterwards."""
    training = model.training
    if training:
        model.eval()
    first = next(model.parameters(), None)
    is_on_card = first is not None and first.is_cuda
    try:
        with sdpa_kernel(ATTENTION_OF_ANY_SHAPE) if is_on_card else nullcontext():
            yield
    finally:
        if training:
            model.train()
