"""Find problems of a plan: implausible records, too little disk space, repeated data, a warm-up that is too long."""

import re
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from regpt.base.cards import Card, find_card
from regpt.base.errors import UserError
from regpt.base.recipe import Recipe
from regpt.data.sizes import epochs
from regpt.plan.roofline import speed_range
from regpt.plan.sizes import disk_needed

IMPOSSIBLE_SHARE = 0.95  # of peak; no published training run reaches it
DOUBTFUL_RATIO = 1.05  # times the optimistic end of the predicted range
REPEATED_EPOCHS = 4  # Muennighoff et al. 2023, arXiv 2305.16264


class RecordProblem(Enum):
    """Why a published training time is implausible."""

    ABOVE_PEAK = "above peak"
    ABOVE_RANGE = "above range"


@dataclass(frozen=True)
class ImplausibleRecord:
    """A published training time that is too short for its hardware."""

    problem: RecordProblem
    origin: str
    tokens: int
    hours: float
    cards: int
    card: Card
    tokens_per_second: float
    share_of_peak: float
    optimistic_tokens_per_second: float  # of all cards, predicted


@dataclass(frozen=True)
class DiskTooSmall:
    """Less free disk space than the checkpoints need."""

    runs: Path
    free: int  # bytes
    needed: int  # bytes


@dataclass(frozen=True)
class ManyEpochs:
    """Training data repeated so often that it loses value."""

    epochs: float


@dataclass(frozen=True)
class WarmupTooLong:
    """A warm-up that lasts for the whole run."""

    warmup_steps: int
    max_steps: int


PlanWarning = ImplausibleRecord | DiskTooSmall | ManyEpochs | WarmupTooLong


def find_warnings(recipe: Recipe, runs: Path, cards: Collection[Card] = ()) -> Iterator[PlanWarning]:
    """Yield a warning for each problem of the recipe or of the disk that holds `runs`.

    A published time is checked only where the plan is for its card, one of `cards`.
    """
    record = find_implausible_record(recipe)
    if record is not None and record.card in cards:
        yield record
    free, needed = shutil.disk_usage(existing_parent(runs)).free, disk_needed(recipe)
    if free < needed:
        yield DiskTooSmall(runs, free, needed)
    repeats = epochs(recipe)
    if repeats is not None and repeats > REPEATED_EPOCHS:
        yield ManyEpochs(repeats)
    if recipe.is_warmup_too_long:
        yield WarmupTooLong(recipe.optimizer.warmup_steps, recipe.run.max_steps)


def existing_parent(path: Path) -> Path:
    """Return the path itself if it exists, otherwise its nearest existing parent."""
    path = path.absolute()
    return path if path.exists() else existing_parent(path.parent)


def find_implausible_record(recipe: Recipe) -> ImplausibleRecord | None:
    """Compare the published hours with the cards' peak and with the predicted range; None if they are plausible."""
    record = recipe.published
    hardware = parse_hardware(record.hardware)
    if not record.hours or hardware is None:
        return None
    cards, card = hardware
    speed = recipe.total_tokens / (3600 * record.hours)
    share = speed * recipe.model.flops_per_token / (cards * card.peak)
    optimistic = cards * speed_range(recipe.model, card)[1]
    if share > IMPOSSIBLE_SHARE:
        problem = RecordProblem.ABOVE_PEAK
    elif speed > DOUBTFUL_RATIO * optimistic:
        problem = RecordProblem.ABOVE_RANGE
    else:
        return None
    return ImplausibleRecord(
        problem=problem,
        origin=record.origin,
        tokens=recipe.total_tokens,
        hours=record.hours,
        cards=cards,
        card=card,
        tokens_per_second=speed,
        share_of_peak=share,
        optimistic_tokens_per_second=optimistic,
    )


def parse_hardware(hardware: str) -> tuple[int, Card] | None:
    """Parse '4 x RTX 3090, DDP over NCCL' into (4, the card); None if it names no known card."""
    match = re.match(r"\s*(\d+)\s*[x×]\s*([^,;]+)", hardware)
    if match is None:
        return None
    try:
        return int(match[1]), find_card(match[2])
    except UserError:
        return None
