"""Build the optimizer of a model: AdamW, or Muon and AdamW as one."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from regpt.optimizer.adam import AdamW
from regpt.optimizer.base import Optimizer
from regpt.optimizer.exchange import Exchange, NoExchange
from regpt.optimizer.groups import Method, ParameterGroup, parameter_groups, stacked_matrices
from regpt.optimizer.muon import Muon
from regpt.recipe.recipe import Recipe


class CombinedOptimizer(Optimizer):
    """Several optimizers with one list of groups and one state, which load and save as those of a single one."""

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups])
        self.parts = parts
        for part in parts:
            part.state = self.state

    def step(self) -> None:
        """Do one step of each part."""
        for part in self.parts:
            part.step()


def make_optimizer(model: nn.Module, recipe: Recipe, exchange: Exchange | None = None) -> Optimizer:
    """Build the optimizer of a recipe with the groups of `parameter_groups`, at their peak rates.

    `exchange` says how ranks share Muon's work; by default each does all of it.
    """
    groups, settings = parameter_groups(model, recipe), recipe.optimizer
    adam = AdamW([group_dict(group) for group in groups if group.method is Method.ADAMW], settings)
    if settings.kind == "adamw":
        return adam
    hidden = [
        {**group_dict(group), "stacked": [stacked_matrices(name, recipe.model) for name in group.parameters]}
        for group in groups
        if group.method is Method.MUON
    ]
    return CombinedOptimizer([Muon(hidden, settings, exchange or NoExchange()), adam])


def group_dict(group: ParameterGroup) -> dict[str, Any]:
    """Return a group as an `Optimizer` has it. The last three are for `set_rates`."""
    return {
        "params": list(group.parameters.values()),
        "name": group.name,
        "lr": group.peak_rate,
        "weight_decay": group.decay,
        "peak_rate": group.peak_rate,
        "peak_decay": group.decay,
        "schedule": group.schedule,
    }
