"""What the runs of an ablation have in common besides the data: tokens, parameters, FLOPs or time.

Settings follow from it for each arm: a hidden width, or a number of steps. An arm that equals the base gets none.
"""

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from regpt.base.errors import UserError
from regpt.optimizer.sizes import newton_schulz_flops
from regpt.recipe.recipe import Recipe
from regpt.tracking.run import QUIET_SHARE, MachineLoad

WIDTH_MULTIPLE = 8
PARAMETER_TOLERANCE = 0.01
# Settings that count steps: with a longer or shorter run each keeps its share of it. The schedule's own come first.
SCHEDULE_STEPS = ("warmup_steps", "cooldown_steps", "adam_cooldown_steps")
OTHER_STEPS = ("muon_momentum_warmup_steps", "average_steps")


class Equal(StrEnum):
    """What all arms have in common with the base."""

    TOKENS = "tokens"  # as the arms say: the same number of steps
    PARAMETERS = "parameters"
    FLOPS = "flops"
    TIME = "time"


@dataclass(frozen=True)
class Speed:
    """The measured speed of an arm."""

    token_seconds: float
    other_cpu_share: float  # of the processors, used by other programs; -1: unknown
    is_on_cpu: bool

    @property
    def load(self) -> MachineLoad:
        """The load of the machine meanwhile. On a GPU it says little about the speed."""
        if not self.is_on_cpu or 0.0 <= self.other_cpu_share <= QUIET_SHARE:
            return MachineLoad.QUIET
        return MachineLoad.BUSY if self.other_cpu_share > QUIET_SHARE else MachineLoad.UNKNOWN


@dataclass(frozen=True)
class Cost:
    """What a run costs, in FLOPs or in seconds."""

    of_token: float
    of_step: float = 0.0  # besides its tokens

    def of(self, recipe: Recipe, steps: int) -> float:
        """Return the cost of the first `steps` steps of a recipe."""
        return self.of_token * recipe.tokens_after(steps) + self.of_step * steps


def flops(recipe: Recipe) -> Cost:
    """Return the floating-point operations of a recipe: forward and backward passes, and Muon's orthogonalization."""
    return Cost(recipe.model.flops_per_token, newton_schulz_flops(recipe))


def parameter_words(arm: str, recipe: Recipe, base: Recipe, has_own_width: bool) -> Iterator[str]:
    """Yield the hidden width, a multiple of 8, with the number of parameters nearest to the base's.

    Raises UserError where that is not within 1 %. An arm with a width of its own keeps it.
    """
    target, model = base.model.parameters, recipe.model
    if model.parameters == target:
        return
    if not has_own_width:
        narrow, wide = (replace(model, mlp_hidden=width).parameters for width in (WIDTH_MULTIPLE, 2 * WIDTH_MULTIPLE))
        multiple = max(1, 1 + round((target - narrow) / (wide - narrow)))
        nearest = replace(model, mlp_hidden=multiple * WIDTH_MULTIPLE)
        model = min(model, nearest, key=lambda one: abs(one.parameters - target))
    if abs(model.parameters - target) > PARAMETER_TOLERANCE * target:
        remedy = "leave out its model.mlp_hidden, or choose" if has_own_width else "choose"
        raise UserError(
            f"arm '{arm}': {model.parameters:,} parameters with model.mlp_hidden = {model.mlp_hidden}, the base has"
            f" {target:,}; that is not within 1 %",
            f"{remedy} model.n_layer or model.n_embd for it, or --at-equal tokens or flops",
        )
    if model.mlp_hidden != recipe.model.mlp_hidden:
        yield f"model.mlp_hidden={model.mlp_hidden}"


def equal_steps(recipe: Recipe, cost: Cost, base: Recipe, cost_of_base: Cost) -> int:
    """Return the number of steps, at least one, whose cost is nearest to the base's."""
    target = cost_of_base.of(base, base.run.max_steps)
    most = recipe.run.max_steps
    while cost.of(recipe, most) < target:
        most *= 2
    above = 1 + bisect.bisect_left(range(1, most), target, key=lambda steps: cost.of(recipe, steps))
    return min(max(1, above - 1), above, key=lambda steps: abs(cost.of(recipe, steps) - target))


def step_words(recipe: Recipe, steps: int) -> Iterator[str]:
    """Yield the settings of a run of `steps` steps whose warm-up and cooldowns keep their shares of the run."""
    own = recipe.run.max_steps
    if steps == own:
        return
    yield f"run.max_steps={steps}"
    left = steps
    for name in SCHEDULE_STEPS:
        if value := getattr(recipe.optimizer, name):
            scaled = min(max(1, round(value * steps / own)), max(left, 0))
            left = steps - scaled if name == "warmup_steps" else left
            yield f"optimizer.{name}={scaled}"
    for name in OTHER_STEPS:
        is_used = recipe.optimizer.kind == "muon" or not name.startswith("muon_")
        if is_used and (value := getattr(recipe.optimizer, name)):
            yield f"optimizer.{name}={max(1, round(value * steps / own))}"
