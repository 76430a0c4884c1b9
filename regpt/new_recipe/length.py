"""The length of a new recipe: in steps, in tokens, or in time on this machine."""

import bisect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from regpt.base.errors import UserError
from regpt.machine.device import known_card, open_device
from regpt.new_recipe.intervals import with_intervals, with_steps
from regpt.plan.estimate import Hardware, estimate
from regpt.plan.run_time import time_on_cpu
from regpt.plan.workload import count_work
from regpt.recipe.recipe import Recipe

WORDS = re.compile(
    r"(?:about\s+)?(\d[\d_,]*(?:\.\d+)?(?:e\d+)?)\s*([kmgb]?)\s*(steps?|tokens?|min(?:utes?)?|h(?:ours?)?)?"
)
PREFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}
MOST_STEPS = 10**9  # of a run whose time is given


class Unit(StrEnum):
    STEPS = "steps"
    TOKENS = "tokens"
    SECONDS = "seconds"


@dataclass(frozen=True)
class Length:
    """How long a run should be."""

    amount: float
    unit: Unit


def parse_length(answer: str) -> Length:
    """Read '600', '600 steps', '2M tokens', '10 minutes' or '1.5 h'. Raise UserError for other text and for zero."""
    match = WORDS.fullmatch(answer.strip().lower())
    word = (match[3] or "steps") if match else ""
    amount = float(re.sub("[_,]", "", match[1])) * PREFIXES[match[2]] if match else 0.0
    if match is None or not 0 < amount < math.inf or (match[2] and not word.startswith("token")):
        raise UserError(f"'{answer}' is not a length of a run", "write for example 600 steps, 2M tokens or 10 minutes")
    if word.startswith("token"):
        return Length(amount, Unit.TOKENS)
    seconds = {"m": 60, "h": 3600}.get(word[0])
    return Length(amount * seconds, Unit.SECONDS) if seconds else Length(amount, Unit.STEPS)


def steps_of(length: Length, recipe: Recipe) -> int:
    """Return the optimizer steps of a length. A time is one on this machine, with evaluations and checkpoints."""
    if length.unit is Unit.STEPS:
        return max(1, round(length.amount))
    if length.unit is Unit.TOKENS:
        return max(1, recipe.batch_sizes.steps_for(round(length.amount)))

    timer = run_timer(recipe)

    def seconds(steps: int) -> float:
        return timer(with_intervals(with_steps(recipe, steps), recipe))

    return max(1, bisect.bisect(range(1, MOST_STEPS), length.amount, key=seconds))


def run_timer(recipe: Recipe) -> Callable[[Recipe], float]:
    """Return a function that estimates the seconds of a run on this machine, for recipes of this model's size.

    Measures a CPU for two seconds. Raise UserError on a GPU whose speed is unknown or whose memory is too small.
    """
    from regpt.plan.measure_cpu import measured_rates

    device = open_device(recipe.run)
    card = known_card(device.torch_device)
    if card is None and device.torch_device.type == "cpu":
        rates = measured_rates(recipe, device)
        return lambda other: time_on_cpu(other, count_work(other), rates, 0.0).total.middle

    def on_card(other: Recipe) -> float:
        found = card and estimate(other, 1, Hardware(card))
        if not found:
            raise UserError(f"{device.name}: its speed is unknown", "give the length in steps or tokens")
        return found.time.total.middle

    return on_card
