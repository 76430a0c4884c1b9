"""The length of a new recipe, in steps, tokens or minutes, and the warm-up and intervals that suit it."""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from regpt.base.errors import UserError
from regpt.base.format import percent
from regpt.base.recipe import Recipe

ITEM_TOKENS = 178  # positions of a HellaSwag item as `tasks/packing.py` packs it, with padding: measured
HELLASWAG_ITEMS = 10_042
FEWEST_ITEMS = 50  # with fewer, an accuracy has a standard error of more than 6 percentage points
FORWARD_SHARE = 1 / 3  # of the compute of a training token
EVALUATION_SHARE = 0.1  # of the compute of training, for validation and for HellaSwag each
FEWEST_VALIDATIONS, MOST_VALIDATIONS = 3, 20  # after the first
CHECKPOINTS = 4  # about; each at a validation
SHORTEST_WARMUP = 20  # one step of warm-up for this number of steps
WORDS = re.compile(
    r"(?:about\s+)?(\d[\d_,]*(?:\.\d+)?(?:e\d+)?)\s*([kmgb]?)\s*(steps?|tokens?|min(?:utes?)?|h(?:ours?)?)?"
)
PREFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}


class Unit(StrEnum):
    STEPS = "steps"
    TOKENS = "tokens"
    SECONDS = "seconds"


@dataclass(frozen=True)
class Length:
    """How long a run should be."""

    amount: float
    unit: Unit


@dataclass(frozen=True)
class Value:
    """The value of a setting in a new recipe, and the reason for it."""

    setting: str  # 'run.max_steps'
    value: Any
    why: str = ""


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


def steps_of(length: Length, recipe: Recipe, step_seconds: float) -> int:
    """Return the optimizer steps of a length. A time includes evaluations; a step takes `step_seconds`."""
    if length.unit is Unit.STEPS:
        return max(1, round(length.amount))
    if length.unit is Unit.TOKENS:
        return max(1, -(-round(length.amount) // recipe.data.total_batch_tokens))
    most = steps = length.amount / step_seconds
    for _ in range(4):  # evaluations depend on the steps that remain for training
        steps = max(1.0, most - evaluation_steps(with_intervals(with_steps(recipe, round(steps)), recipe)))
    return round(steps)


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    return replace(recipe, run=replace(recipe.run, max_steps=max(1, steps)))


def with_intervals(recipe: Recipe, base: Recipe) -> Recipe:
    return with_values(recipe, interval_values(recipe, base))


def with_values(recipe: Recipe, values: Iterable[Value]) -> Recipe:
    for found in values:
        section, _, key = found.setting.partition(".")
        recipe = replace(recipe, **{section: replace(getattr(recipe, section), **{key: found.value})})
    return recipe


def validation_cost(recipe: Recipe) -> float:
    """Return the steps of training that take as much compute as one validation."""
    evaluation = recipe.evaluation
    windows = evaluation.validation_batches * evaluation.validation_batch_size
    tokens = min(windows * recipe.model.block_size, recipe.data.validation_tokens)
    return FORWARD_SHARE * tokens / recipe.data.total_batch_tokens


def item_cost(recipe: Recipe) -> float:
    """Return the steps of training that take as much compute as one HellaSwag item."""
    return FORWARD_SHARE * ITEM_TOKENS / recipe.data.total_batch_tokens


def evaluation_steps(recipe: Recipe) -> float:
    """Return the steps of training that take as much compute as all evaluations of a run."""
    evaluation = recipe.evaluation
    validations = 1 + recipe.times_due(0, evaluation.validation_every)
    tasks = 1 + recipe.times_due(0, evaluation.hellaswag_every) if evaluation.hellaswag_every else 0
    items = tasks * (evaluation.hellaswag_items or HELLASWAG_ITEMS)
    return validations * validation_cost(recipe) + items * item_cost(recipe)


def interval_values(recipe: Recipe, base: Recipe) -> Iterator[Value]:
    """Yield the warm-up, the intervals and the HellaSwag items that suit the steps of a recipe like `base`.

    The warm-up keeps its share of a shorter run, at least a twentieth, and its steps in a longer one. Evaluations take
    about a tenth of the compute each, with at least `FEWEST_VALIDATIONS`.
    """
    steps, before = recipe.run.max_steps, base.optimizer.warmup_steps
    warmup = min(before, max(before * steps // base.run.max_steps, steps // SHORTEST_WARMUP))
    yield Value("optimizer.warmup_steps", warmup, f"{percent(warmup / steps)} of the run")
    affordable = int(EVALUATION_SHARE * steps / validation_cost(recipe))
    count = min(MOST_VALIDATIONS, max(FEWEST_VALIDATIONS, affordable))
    every = max(1, -(-steps // count))
    yield Value("evaluation.validation_every", every)
    if base.evaluation.hellaswag_every:
        yield from hellaswag_values(recipe)
    yield Value("checkpoint.every", every * -(-count // CHECKPOINTS))


def hellaswag_values(recipe: Recipe) -> Iterator[Value]:
    """Yield when HellaSwag is evaluated, and on which number of items."""
    steps = recipe.run.max_steps
    items = int(EVALUATION_SHARE * steps / item_cost(recipe))  # in all evaluations together
    times = min(MOST_VALIDATIONS, items // HELLASWAG_ITEMS - 1)
    if times >= 1:
        yield Value("evaluation.hellaswag_every", -(-steps // times))
        yield Value("evaluation.hellaswag_items", 0, "all")
    elif items >= 2 * FEWEST_ITEMS:
        yield Value("evaluation.hellaswag_every", steps, "at the start and the end")
        yield Value("evaluation.hellaswag_items", round_down(items // 2))
    else:
        yield Value("evaluation.hellaswag_every", 0, "never: the run is too short for enough items")


def round_down(count: int) -> int:
    """Return the number with two leading digits kept and zeros after them: 4,731 becomes 4,700."""
    unit: int = 10 ** max(0, len(str(count)) - 2)
    return count // unit * unit
