"""AdamW with cautious weight decay."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from regpt.distributed.dtensor import to_local


class CautiousAdamW(AdamW):
    """AdamW that decays a weight only where its update moves it towards zero.

    Source: Chen et al. 2025, arXiv 2510.12402. The update has the sign of the mean of gradients, because the
    denominator is positive.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Decay with the mean that this step will have, then update without decay."""
        decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            if group["weight_decay"]:
                self.decay(group)
            group["weight_decay"] = 0.0
        super().step(closure)
        for group, decay in zip(self.param_groups, decays, strict=True):
            group["weight_decay"] = decay

    def decay(self, group: dict[str, Any]) -> None:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            weight, gradient = to_local(parameter), to_local(parameter.grad)
            earlier = self.state[parameter].get("exp_avg")
            mean = gradient if earlier is None else to_local(earlier).lerp(gradient, 1 - group["betas"][0])
            cautious_decay_(weight, mean, group["lr"] * group["weight_decay"])


def cautious_decay_(weight: Tensor, update: Tensor, share: float) -> None:
    """Shrink a weight by a share of it where the update, which will be subtracted, moves it towards zero."""
    weight.sub_(weight * (update * weight > 0), alpha=share)
