"""The kernel that computes attention on a device: one of PyTorch's backends, or `cpu_attention`."""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from regpt.machine.cpu_attention import is_faster
from regpt.machine.device import Device
from regpt.recipe.recipe import Recipe

NAMES = {
    SDPBackend.MATH: "math",
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.EFFICIENT_ATTENTION: "efficient",
    SDPBackend.CUDNN_ATTENTION: "cudnn",
}


def attention_backend(recipe: Recipe, device: Device) -> str:
    """Return the name of the kernel for the attention of a training step; empty if PyTorch does not tell."""
    model = recipe.model
    if model.document_mask and device.compiled and device.torch_device.type == "cuda" and not model.dropout:
        return "flex"
    shape = (recipe.data.micro_batch, model.n_head, model.block_size, model.head_width)
    q = torch.empty(shape, dtype=device.precision, device=device.torch_device, requires_grad=True)
    mask = q.new_zeros(shape[0], 1, model.block_size, model.block_size) if model.document_mask else None
    grouped = model.kv_heads < model.n_head and has_grouped_kernel(q, mask)
    k = q[:, : model.kv_heads] if grouped else q
    if mask is None and not (model.dropout or device.compiled) and is_faster(q, k):
        return "blocks"
    try:
        choice = torch._fused_sdp_choice(q, k, k, mask, model.dropout, mask is None, enable_gqa=grouped)
    except (RuntimeError, AttributeError):  # a private function, which not every version and device has
        return ""
    return NAMES.get(SDPBackend(choice), "")


def has_grouped_kernel(q: Tensor, mask: Tensor | None) -> bool:
    """Return whether a fused kernel takes fewer heads of keys than of queries: on a CPU, and FlashAttention on CUDA.

    The other kernels of CUDA do not; PyTorch would compute all scores at once instead.
    """
    return q.device.type == "cpu" or (q.is_cuda and mask is None and q.dtype in (torch.bfloat16, torch.float16))
