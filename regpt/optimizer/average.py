"""An exponential moving average of the weights over the last steps, which is evaluated next to them.

It is part of the optimizer's state of each parameter, so that it is saved, resumed and sharded with it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from regpt.distributed.dtensor import to_local
from regpt.optimizer.base import Optimizer
from regpt.recipe.optimization import OptimizerRecipe

AVERAGE = "average"  # in the state of a parameter


@torch.no_grad()
def update_average(optimizer: Optimizer, settings: OptimizerRecipe) -> None:
    """Move the average towards the weights, after a step. It begins with the weights after the first step."""
    if not settings.average_steps:
        return
    for parameter in optimizer.parameters():
        state = optimizer.state[parameter]
        if AVERAGE in state:
            to_local(state[AVERAGE]).lerp_(to_local(parameter), 1.0 / settings.average_steps)
        else:
            state[AVERAGE] = parameter.detach().clone()


def has_average(optimizer: Optimizer) -> bool:
    return any(AVERAGE in state for state in optimizer.state.values())


def drop_average(optimizer: Optimizer) -> None:
    for state in optimizer.state.values():
        state.pop(AVERAGE, None)


@contextmanager
def averaged_weights(optimizer: Optimizer, settings: OptimizerRecipe) -> Iterator[None]:
    """Put the averaged weights into the model, and the last ones back afterwards, to the bit."""
    last = [to_local(parameter).detach().clone() for parameter in optimizer.parameters()]
    try:
        with torch.no_grad():
            for parameter in optimizer.parameters():
                to_local(parameter).lerp_(to_local(optimizer.state[parameter][AVERAGE]), settings.average_share)
        yield
    finally:
        with torch.no_grad():
            for parameter, weights in zip(optimizer.parameters(), last, strict=True):
                to_local(parameter).copy_(weights)
