"""The base class of optimizers: parameter groups, and a state per parameter.

It has the attributes of `torch.optim.Optimizer` that regpt uses. Constructing one of torch's imports torch's compiler,
which takes longer than importing the rest of torch.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn


class Optimizer(ABC):
    """Updates the parameters of its groups from their gradients.

    A group is a dict with `params`, `lr`, `weight_decay` and what else its method needs. `state` has the tensors of
    each parameter that has been updated, by their names in a checkpoint.
    """

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        self.param_groups = list(groups)
        self.state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)

    @abstractmethod
    def step(self) -> None:
        """Update every parameter that has a gradient."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of all groups."""
        for group in self.param_groups:
            yield from group["params"]

    def zero_grad(self) -> None:
        """Drop all gradients and free their memory."""
        for parameter in self.parameters():
            parameter.grad = None
