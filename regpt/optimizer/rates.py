"""The learning rate, the weight decay and the momentum of each group in a step."""

from regpt.optimizer.base import Optimizer
from regpt.optimizer.schedule import learning_rate
from regpt.recipe.optimization import OptimizerRecipe
from regpt.recipe.recipe import Recipe


def set_rates(optimizer: Optimizer, step: int, recipe: Recipe) -> None:
    """Set what each group of an optimizer of `make_optimizer` uses in `step`, from 0.

    A group's learning rate is the schedule's, times the ratio of the group's peak rate to max_lr.
    """
    settings = recipe.optimizer
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, recipe, group["schedule"]) * (group["peak_rate"] / settings.max_lr)
        if settings.weight_decay_schedule == "lr":
            group["weight_decay"] = group["peak_decay"] * (group["lr"] / group["peak_rate"])
        if "momentum" in group:
            group["momentum"] = momentum(step, settings)


def momentum(step: int, settings: OptimizerRecipe) -> float:
    """Return Muon's momentum in `step`, from 0: a linear warm-up, then constant."""
    done = min(1.0, step / settings.muon_momentum_warmup_steps) if settings.muon_momentum_warmup_steps else 1.0
    return settings.muon_momentum_start + done * (settings.muon_momentum - settings.muon_momentum_start)
