"""The precisions of exported weights, and how far each may move the logits."""

from enum import StrEnum

import torch


class Precision(StrEnum):
    """The type of the exported weights, by PyTorch's name."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.value)
        return dtype

    @property
    def bound(self) -> float:
        """Return the largest error of logits that rounding explains, as a share of their standard deviation.

        Rounding a weight errs by at most eps / 2. The errors of a dot product add up at random, and so do those of the
        layers. 16 eps leaves room for a hundred layers: 0.12 for bfloat16, 0.016 for float16. In float32 nothing is
        rounded; what differs is the order of sums.
        """
        return 1e-4 if self is Precision.FLOAT32 else 16 * torch.finfo(self.dtype).eps
