"""Decode with weights in float16, on CPUs: a new token reads every weight once, so half the bytes take half the time.

The products are FBGEMM's (Khudia et al. 2021, arXiv 2101.05615), which torch has for x86: weights in float16, inputs
and sums in float32. A row of a product does not depend on the other rows, so a text alone and in a batch stay at least
as close as with weights in float32. Rounding a weight to float16 moves it by a 2,048th at most, or by 3e-8 where it is
below 6e-5. `python -m benchmarks.sampling --texts MODEL` counts the texts that this changes.
"""

import copy
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor, nn

from regpt.model.gpt import GPT, MLP, Attention

LARGEST = torch.finfo(torch.float16).max


class HalfLinear(nn.Module):
    """A linear layer whose weight is stored in float16.  (..., in) -> (..., out)"""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight.detach(), None if bias is None else bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self.packed)
        return product


def with_half_weights(model: GPT) -> GPT:
    """Return a model for decoding with weights of attention, MLP and head in float16; it shares all other tensors.

    Return the model itself where torch has no such products, and for weights that are not float32 on the CPU. A layer
    with a weight that float16 cannot hold stays as it is, and so do mixtures of experts.
    """
    weight = model.head_weight
    if weight.dtype != torch.float32 or weight.device.type != "cpu" or not has_half_products():
        return model
    tensors = [*model.parameters(), *model.buffers()]
    made = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    layers: list[tuple[nn.Module, str, Tensor, Tensor | None]] = [(made, "head_product", weight, None)]
    for block in made.modules():
        if isinstance(block, Attention | MLP):
            linear = [(name, layer) for name, layer in block.named_children() if isinstance(layer, nn.Linear)]
            layers += [(block, name, layer.weight, layer.bias) for name, layer in linear]
    fitting = [layer for layer in layers if fits(layer[2])]
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # torch packs on one core: 1.6 s for 124M weights
        packed = threads.map(lambda layer: HalfLinear(*layer[2:]), fitting)
        for (part, name, *_), product in zip(fitting, packed, strict=True):
            setattr(part, name, product)
    return made


def fits(weight: Tensor) -> bool:
    """Return whether float16 can hold a weight; NaN and infinity stay in float32."""
    return bool(weight.detach().abs().max() <= LARGEST)


@cache
def has_half_products() -> bool:
    """Return whether torch computes such products here, by a small one."""
    try:
        product = HalfLinear(torch.full((3, 2), 0.5), torch.ones(3))(torch.full((1, 2), 2.0))
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return product.tolist() == [[3.0, 3.0, 3.0]]
