"""Find problems of a plan: implausible records, full disks, repeated data, a long warm-up, long evaluations."""

import re
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from regpt.base.cards import Card, find_card
from regpt.base.errors import UserError
from regpt.data.sizes import epochs
from regpt.plan.roofline import speed_range
from regpt.plan.run_time import RunTime
from regpt.plan.sizes import disk_needed
from regpt.plan.workload import Workload, count_work
from regpt.recipe.recipe import Recipe

IMPOSSIBLE_SHARE = 0.95  # of peak; no published training run reaches it
DOUBTFUL_RATIO = 1.05  # times the optimistic end of the predicted range
REPEATED_EPOCHS = 4  # Muennighoff et al. 2023, arXiv 2305.16264
LONG_EVALUATION = 0.25  # of the run's time
ADVISED_EVALUATION = 0.1  # of the training time, for validation and for HellaSwag each
FEWEST_ITEMS = 50  # with fewer, an accuracy has a standard error of more than 6 percentage points


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


@dataclass(frozen=True)
class LongEvaluation:
    """Evaluation that takes a large part of the run's time, and settings with which it takes a small one."""

    share: float  # of the run's time, with samples
    validation_share: float
    task_share: float
    remedy: tuple[tuple[str, int], ...]  # settings and their values


PlanWarning = ImplausibleRecord | DiskTooSmall | ManyEpochs | WarmupTooLong | LongEvaluation


def find_warnings(
    recipe: Recipe, runs: Path, cards: Collection[Card] = (), time: RunTime | None = None
) -> Iterator[PlanWarning]:
    """Yield a warning for each problem of the recipe, of its `time`, or of the disk that holds `runs`.

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
    if time is not None and time.evaluation_share > LONG_EVALUATION:
        remedy = tuple(shorter_evaluation(recipe, time))
        yield LongEvaluation(time.evaluation_share, time.share("validation"), time.share("tasks"), remedy)


def shorter_evaluation(recipe: Recipe, time: RunTime) -> Iterator[tuple[str, int]]:
    """Yield settings with which validation and HellaSwag each take at most `ADVISED_EVALUATION` of the training time.

    Evaluations become rarer first, down to one at the start and one at the end, then smaller.
    """
    work, most = count_work(recipe), ADVISED_EVALUATION * time.training.middle
    if time.validation.middle > most:
        yield from shorter_validation(recipe, work, most / time.validation.middle)
    if time.tasks.middle > most:
        yield from shorter_tasks(recipe, work, most / time.tasks.middle)
    if time.samples.middle > most:
        yield "evaluation.sample_every", 0


def shorter_validation(recipe: Recipe, work: Workload, share: float) -> Iterator[tuple[str, int]]:
    """Yield settings with which validation takes `share` of the time that it takes now."""
    count = int(work.validations * share)
    if count > 2:
        yield "evaluation.validation_every", -(-work.steps // (count - 1))
        return
    if work.validations > 2:
        yield "evaluation.validation_every", 0
    windows = work.validations * work.validation_windows * share / 2
    if windows < work.validation_windows:
        batches = max(1, int(windows / recipe.evaluation.validation_batch_size))
        yield "evaluation.validation_batches", batches
        if windows < recipe.evaluation.validation_batch_size:
            yield "evaluation.validation_batch_size", max(1, int(windows))


def shorter_tasks(recipe: Recipe, work: Workload, share: float) -> Iterator[tuple[str, int]]:
    """Yield settings with which HellaSwag takes `share` of the time that it takes now."""
    count = int(work.task_evaluations * share)
    if count > 2:
        yield "evaluation.hellaswag_every", -(-work.steps // (count - 1))
        return
    items = int(work.task_evaluations * work.task_items * share / 2)
    if items < FEWEST_ITEMS:
        yield "evaluation.hellaswag_every", 0
        return
    if work.task_evaluations > 2:
        yield "evaluation.hellaswag_every", work.steps
    if items < work.task_items:
        yield "evaluation.hellaswag_items", round_down(items)


def round_down(count: int) -> int:
    """Return the number with its leading digit kept and zeros after it: 4,731 becomes 4,000."""
    unit: int = 10 ** (len(str(count)) - 1)
    return count // unit * unit


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
