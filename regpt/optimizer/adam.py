"""AdamW, which updates all tensors of a group in one pass by torch's fused kernel; weight decay may be cautious.

Source: Loshchilov & Hutter 2019, arXiv 1711.05101. Moments have the names and the numbers of `torch.optim.AdamW`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regpt.distributed.dtensor import shard_like, to_local
from regpt.optimizer.base import Optimizer
from regpt.recipe.optimization import OptimizerRecipe

STEP, MEAN, SQUARES = "step", "exp_avg", "exp_avg_sq"  # in the state of a parameter


class AdamW(Optimizer):
    """AdamW. With `optimizer.cautious_weight_decay`, a weight decays only where its update moves it towards zero.

    Source of the latter: Chen et al. 2025, arXiv 2510.12402. The update has the sign of the mean of gradients, because
    the denominator is positive.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], settings: OptimizerRecipe) -> None:
        super().__init__(groups)
        self.settings = settings

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            self.update(group, [parameter for parameter in group["params"] if parameter.grad is not None])

    def update(self, group: dict[str, Any], parameters: Sequence[nn.Parameter]) -> None:
        if not parameters:
            return
        settings, decay = self.settings, group["weight_decay"]
        states = [self.state_of(parameter) for parameter in parameters]
        weights = [to_local(parameter) for parameter in parameters]
        gradients = [to_local(parameter.grad) for parameter in parameters if parameter.grad is not None]
        means = [to_local(state[MEAN]) for state in states]
        steps = [state[STEP] for state in states]
        if settings.cautious_weight_decay and decay:
            for weight, mean, gradient in zip(weights, means, gradients, strict=True):
                cautious_decay_(weight, mean.lerp(gradient, 1 - settings.beta1), group["lr"] * decay)
            decay = 0.0
        torch._foreach_add_(steps, 1.0)
        torch._fused_adamw_(
            weights,
            gradients,
            means,
            [to_local(state[SQUARES]) for state in states],
            [],
            steps,
            lr=group["lr"],
            beta1=settings.beta1,
            beta2=settings.beta2,
            weight_decay=decay,
            eps=settings.eps,
            amsgrad=False,
            maximize=False,
        )

    def state_of(self, parameter: nn.Parameter) -> dict[str, Any]:
        """Return the parameter's state, zeros before its first step."""
        state = self.state[parameter]
        if STEP not in state:
            local = to_local(parameter)
            state[STEP] = local.new_zeros((), dtype=torch.float32)
            for name in (MEAN, SQUARES):
                state[name] = shard_like(parameter, torch.zeros_like(local))
        return state


def cautious_decay_(weight: Tensor, update: Tensor, share: float) -> None:
    """Shrink a weight by a share of it where the update, which will be subtracted, moves it towards zero."""
    weight.sub_(weight * (update * weight > 0), alpha=share)
