"""Build the plan of a run: its memory, time, energy, cost and disk space, as numbers. `plan/wording.py` prints it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from regpt.base.cards import CARDS, find_card
from regpt.base.errors import UserError
from regpt.optimizer.sizes import checkpoint_bytes
from regpt.plan.estimate import Estimate, Hardware, estimate, largest_micro_batch
from regpt.plan.memory import USABLE_SHARE, Memory, ParallelLayout, estimate_memory
from regpt.plan.run_time import CPU_ERROR, Range, Rates, RunTime, time_on_cpu
from regpt.plan.sizes import checkpoints_kept, dataset_bytes, dataset_copies
from regpt.plan.warnings import PlanWarning, find_warnings
from regpt.plan.workload import Workload, count_work
from regpt.recipe.recipe import Recipe, nearest_divisors


class MicroBatchFit(Enum):
    """Whether the recipe's micro-batch can be used."""

    FITS = "fits"
    DOES_NOT_FIT = "does not fit"
    DOES_NOT_DIVIDE = "does not divide"


@dataclass(frozen=True)
class MicroBatch:
    """The recipe's micro-batch on the given hardware, in sequences, and the largest one that would fit."""

    configured: int
    fit: MicroBatchFit
    used: int  # in the estimate
    largest: int  # that fits in memory
    largest_dividing: int  # that also divides the batch; 0 if none


@dataclass(frozen=True)
class CardPlan:
    """The plan on a number of cards of one kind."""

    hardware: Hardware
    ranks: int
    memory_limit: float  # usable bytes of a card
    estimate: Estimate | None  # None if the model does not fit
    micro_batch: MicroBatch | None
    smallest_memory: float  # bytes of a card with one sequence at a time, sharded over all ranks


@dataclass(frozen=True)
class CpuPlan:
    """The plan on this machine's CPU, from measured parts of a step."""

    name: str
    layout: ParallelLayout
    memory: Memory
    memory_free: float  # bytes
    memory_limit: float  # bytes that the container allows; infinity if it sets no limit
    micro_batch: MicroBatch
    step_seconds: Range
    tokens_per_second: Range
    time: RunTime


@dataclass(frozen=True)
class DiskPlan:
    """The checkpoints that a run keeps, its dataset, and how often the preparation stores the tokens."""

    checkpoints: int
    checkpoint_bytes: int
    dataset_bytes: int | None  # None: not known before the preparation
    dataset_copies: int  # during the preparation; 0: the dataset is prepared


@dataclass(frozen=True)
class Plan:
    """The plan of a recipe: on one kind of card, on every known card, or on this CPU."""

    recipe: Recipe
    work: Workload
    target: CardPlan | tuple[CardPlan, ...] | CpuPlan
    disk: DiskPlan
    warnings: tuple[PlanWarning, ...]


def plan_for_cards(recipe: Recipe, name: str, ranks: int, usd_per_hour: float | None, runs: Path) -> Plan:
    """Plan for cards of the given name, or for every known card if it is 'all'.

    Raises UserError if the batch does not divide among the ranks or the card is unknown.
    """
    if recipe.common_windows % ranks:
        valid = nearest_divisors(recipe.common_windows, ranks)
        problem = f"--gpus {ranks}: a batch of {recipe.common_windows} sequences does not divide among {ranks} ranks"
        raise UserError(problem, f"use {valid}")
    work = count_work(recipe)
    if name == "all":
        plans = tuple(card_plan(recipe, Hardware(card, usd_per_hour), ranks, work) for card in CARDS)
        return build(recipe, work, plans, runs)
    return build(recipe, work, card_plan(recipe, Hardware(find_card(name), usd_per_hour), ranks, work), runs)


def plan_for_this_machine(
    recipe: Recipe,
    name: str,
    rates: Rates,
    memory_free: float,
    bfloat16: bool,
    runs: Path,
    memory_limit: float = math.inf,
    start_seconds: float = 0.0,
) -> Plan:
    """Plan for this CPU from measured rates, the free memory and the container's limit in bytes.

    `start_seconds` pass before training begins: the program is loaded and the device opened.
    """
    compiled, accumulation = recipe.run.compile == "on", recipe.accumulation_steps()
    layout = ParallelLayout(1, recipe.data.micro_batch, accumulation, bfloat16=bfloat16, on_cpu=True, compiled=compiled)
    memory = estimate_memory(recipe, layout)
    fit = MicroBatchFit.FITS if memory.total <= memory_free else MicroBatchFit.DOES_NOT_FIT
    step_seconds = rates.step_seconds(recipe)
    step = Range(step_seconds / CPU_ERROR, step_seconds * CPU_ERROR)
    tokens, work = recipe.data.total_batch_tokens, count_work(recipe)
    plan = CpuPlan(
        name=name,
        layout=layout,
        memory=memory,
        memory_free=memory_free,
        memory_limit=memory_limit,
        micro_batch=micro_batch(recipe, layout, fit, memory_free),
        step_seconds=step,
        tokens_per_second=Range(tokens / step.optimistic, tokens / step.conservative),
        time=time_on_cpu(recipe, work, rates, start_seconds),
    )
    return build(recipe, work, plan, runs)


def build(recipe: Recipe, work: Workload, target: CardPlan | tuple[CardPlan, ...] | CpuPlan, runs: Path) -> Plan:
    """Add disk space and warnings to the plan of a target."""
    disk = DiskPlan(checkpoints_kept(recipe), checkpoint_bytes(recipe), dataset_bytes(recipe), dataset_copies(recipe))
    plans = (target,) if isinstance(target, CardPlan) else target if isinstance(target, tuple) else ()
    cards = [plan.hardware.card for plan in plans]
    return Plan(recipe, work, target, disk, tuple(find_warnings(recipe, runs, cards, run_time(target))))


def run_time(target: CardPlan | tuple[CardPlan, ...] | CpuPlan) -> RunTime | None:
    """Return the time of the run on a target; None where its speed is not known, and for all cards together."""
    if isinstance(target, CpuPlan):
        return target.time
    if isinstance(target, CardPlan) and target.estimate is not None and target.estimate.is_speed_known:
        return target.estimate.time
    return None


def card_plan(recipe: Recipe, hardware: Hardware, ranks: int, work: Workload) -> CardPlan:
    """Plan with the recipe's own micro-batch if it fits and divides the batch, otherwise with the largest that does."""
    limit = USABLE_SHARE * hardware.card.memory
    configured = estimate(recipe, ranks, hardware, recipe.data.micro_batch, work)
    found = configured or estimate(recipe, ranks, hardware, work=work)
    smallest = estimate_memory(recipe, ParallelLayout(ranks, 1, recipe.batch_windows // ranks, ranks > 1)).total
    if found is None:
        return CardPlan(hardware, ranks, limit, None, None, smallest)
    if configured is not None:
        fit = MicroBatchFit.FITS
    elif recipe.common_windows % (recipe.data.micro_batch * ranks):
        fit = MicroBatchFit.DOES_NOT_DIVIDE
    else:
        fit = MicroBatchFit.DOES_NOT_FIT
    return CardPlan(hardware, ranks, limit, found, micro_batch(recipe, found.layout, fit, limit), smallest)


def micro_batch(recipe: Recipe, layout: ParallelLayout, fit: MicroBatchFit, memory: float) -> MicroBatch:
    """Describe the micro-batch of a layout, with the largest ones that fit in `memory` bytes."""
    largest = largest_micro_batch(recipe, layout, memory)
    dividing = max(dividing_sizes(recipe, layout.ranks, largest), default=0)
    return MicroBatch(recipe.data.micro_batch, fit, layout.micro_batch, largest, dividing)


def dividing_sizes(recipe: Recipe, ranks: int, largest: int) -> Iterator[int]:
    """Yield the micro-batches up to `largest` that divide the batch among the ranks."""
    yield from (size for size in range(1, largest + 1) if recipe.common_windows % (size * ranks) == 0)
