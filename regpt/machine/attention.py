"""The backend that PyTorch chooses for attention on a device."""

import torch
from torch.nn.attention import SDPBackend

from regpt.machine.device import Device
from regpt.recipe.recipe import Recipe

NAMES = {
    SDPBackend.MATH: "math",
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.EFFICIENT_ATTENTION: "efficient",
    SDPBackend.CUDNN_ATTENTION: "cudnn",
}


def attention_backend(recipe: Recipe, device: Device) -> str:
    """Return the name of the backend for the causal attention of a training step; empty if PyTorch does not tell."""
    model = recipe.model
    shape = (recipe.data.micro_batch, model.n_head, model.block_size, model.n_embd // model.n_head)
    q = torch.empty(shape, dtype=device.precision, device=device.torch_device, requires_grad=True)
    try:
        choice = torch._fused_sdp_choice(q, q, q, None, model.dropout, True)
    except (RuntimeError, AttributeError):  # a private function, which not every version and device has
        return ""
    return NAMES.get(SDPBackend(choice), "")
