"""The warm-up, the intervals and the number of HellaSwag items that suit the length and the size of a recipe."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from regpt.base.format import percent
from regpt.plan.run_time import FORWARD_SHARE
from regpt.plan.warnings import ADVISED_EVALUATION, FEWEST_ITEMS
from regpt.plan.workload import ITEM_POSITIONS, count_work
from regpt.recipe.recipe import Recipe
from regpt.tasks.catalog import HELLASWAG_ITEMS

FEWEST_VALIDATIONS, MOST_VALIDATIONS = 3, 20  # after the first
CHECKPOINTS = 4  # about; each at a validation
SHORTEST_WARMUP = 20  # one step of warm-up for this number of steps


@dataclass(frozen=True)
class Value:
    """The value of a setting in a new recipe, and the reason for it."""

    setting: str  # 'run.max_steps'
    value: Any
    why: str = ""


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    return replace(recipe, run=replace(recipe.run, max_steps=max(1, steps)))


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
    return FORWARD_SHARE * ITEM_POSITIONS / recipe.data.total_batch_tokens


def evaluation_steps(recipe: Recipe) -> float:
    """Return the steps of training that take as much compute as all validations and HellaSwag evaluations of a run."""
    work = count_work(recipe)
    return FORWARD_SHARE * (work.validation_positions + work.task_positions) / work.step_tokens


def with_intervals(recipe: Recipe, base: Recipe) -> Recipe:
    return with_values(recipe, interval_values(recipe, base))


def interval_values(recipe: Recipe, base: Recipe) -> Iterator[Value]:
    """Yield the warm-up, the intervals and the HellaSwag items that suit the steps of a recipe like `base`.

    The warm-up keeps its share of a shorter run, at least a twentieth, and its steps in a longer one. A cooldown keeps
    its share. Evaluations take about a tenth of the compute each, with at least `FEWEST_VALIDATIONS`.
    """
    steps, before = recipe.run.max_steps, base.optimizer.warmup_steps
    warmup = min(before, max(before * steps // base.run.max_steps, steps // SHORTEST_WARMUP))
    yield Value("optimizer.warmup_steps", warmup, f"{percent(warmup / steps)} of the run")
    for key in ("cooldown_steps", "adam_cooldown_steps"):
        if before := getattr(base.optimizer, key):
            cooldown = before * steps // base.run.max_steps
            yield Value(f"optimizer.{key}", min(cooldown, steps - warmup), f"{percent(cooldown / steps)} of the run")
    affordable = int(ADVISED_EVALUATION * steps / validation_cost(recipe))
    count = min(MOST_VALIDATIONS, max(FEWEST_VALIDATIONS, affordable))
    every = max(1, -(-steps // count))
    yield Value("evaluation.validation_every", every)
    if base.evaluation.hellaswag_every:
        yield from hellaswag_values(recipe)
    yield Value("checkpoint.every", every * -(-count // CHECKPOINTS))


def hellaswag_values(recipe: Recipe) -> Iterator[Value]:
    """Yield when HellaSwag is evaluated, and on which number of items."""
    steps = recipe.run.max_steps
    items = int(ADVISED_EVALUATION * steps / item_cost(recipe))  # in all evaluations together
    each_time = 2 if recipe.optimizer.average_steps else 1  # with the averaged weights, except at the start
    times = min(MOST_VALIDATIONS, (items // HELLASWAG_ITEMS - 1) // each_time)
    if times >= 1:
        yield Value("evaluation.hellaswag_every", -(-steps // times))
        yield Value("evaluation.hellaswag_items", 0, "all")
    elif items >= (1 + each_time) * FEWEST_ITEMS:
        yield Value("evaluation.hellaswag_every", steps, "at the start and the end")
        yield Value("evaluation.hellaswag_items", round_down(items // (1 + each_time)))
    else:
        yield Value("evaluation.hellaswag_every", 0, "never: the run is too short for enough items")


def round_down(count: int) -> int:
    """Return the number with two leading digits kept and zeros after them: 4,731 becomes 4,700."""
    unit: int = 10 ** max(0, len(str(count)) - 2)
    return count // unit * unit
