"""Reasons why the results of two models are not comparable, as values; regpt/fairness/wording.py describes them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from regpt.fairness.models import ComparedModel
from regpt.stats.outcome import Quantity


class CaveatKind(StrEnum):
    OTHER_DATA = "other data"  # of the validation loss
    OTHER_BLOCK_SIZE = "other block size"
    OTHER_WINDOWS = "other windows"
    OTHER_TOKENIZER = "other tokenizer"
    UNKNOWN_TOKENIZER = "unknown tokenizer"
    SUBSET_AND_FULL_SET = "subset and full set"  # of a task's items
    OTHER_ITEMS = "other items"
    OTHER_PROMPTS = "other prompts"  # two tasks made from one dataset
    OTHER_METRIC = "other metric"
    MISSING_LOSS = "missing loss"
    MISSING_SCORE = "missing score"
    EARLIER_SCORE = "earlier score"  # from an earlier step than the run's last
    BEST_AND_LAST = "best and last"  # a checkpoint selected by its loss, and a last one
    EARLIER_AND_LAST = "earlier and last"  # another earlier checkpoint, and a last one
    LAST_ABOVE_BEST = "last above best"
    UNFINISHED = "unfinished"
    OTHER_TOKENS = "other tokens"  # another number of training tokens
    OTHER_TRAINING_DATA = "other training data"
    OTHER_ORDER = "other order"  # of the training windows
    OTHER_SEED = "other seed"
    OTHER_BATCH = "other batch"  # tokens in a step
    OTHER_EPOCHS = "other epochs"  # passes over the text
    MOVED_SCHEDULE = "moved schedule"  # a resume changed run.max_steps
    SKIPPED_STEPS = "skipped steps"  # by the guard
    OTHER_DEVICE = "other device"
    OTHER_PRECISION = "other precision"
    OTHER_COMPILE = "other compile"  # torch.compile for some models only
    TRUNCATED_CONTEXTS = "truncated contexts"
    PUBLISHED_ON_OTHER_DATA = "published on other data"
    PUBLISHED = "published"  # figures that were not measured here

    @property
    def is_severe(self) -> bool:
        """Whether the results are not comparable at all."""
        return self in SEVERE

    def can_change(self, quantity: Quantity) -> bool:
        """Whether this can change the verdict on a quantity, which then makes no claim about the recipes."""
        return self not in UNRELATED[quantity]


SEVERE = frozenset(
    {
        CaveatKind.OTHER_DATA,
        CaveatKind.OTHER_BLOCK_SIZE,
        CaveatKind.OTHER_WINDOWS,
        CaveatKind.OTHER_TOKENIZER,
        CaveatKind.SUBSET_AND_FULL_SET,
        CaveatKind.OTHER_ITEMS,
        CaveatKind.OTHER_PROMPTS,
        CaveatKind.OTHER_METRIC,
        CaveatKind.BEST_AND_LAST,
        CaveatKind.EARLIER_AND_LAST,
        CaveatKind.PUBLISHED_ON_OTHER_DATA,
    }
)


ABOUT_SCORES = frozenset(
    {
        CaveatKind.SUBSET_AND_FULL_SET,
        CaveatKind.OTHER_ITEMS,
        CaveatKind.OTHER_PROMPTS,
        CaveatKind.OTHER_METRIC,
        CaveatKind.MISSING_SCORE,
        CaveatKind.EARLIER_SCORE,
        CaveatKind.TRUNCATED_CONTEXTS,
    }
)
ABOUT_LOSSES = frozenset(
    {
        CaveatKind.OTHER_DATA,
        CaveatKind.OTHER_BLOCK_SIZE,
        CaveatKind.OTHER_WINDOWS,
        CaveatKind.MISSING_LOSS,
        CaveatKind.LAST_ABOVE_BEST,
    }
)
ABOUT_TIME = frozenset({CaveatKind.OTHER_DEVICE, CaveatKind.OTHER_COMPILE})
UNRELATED = {  # every other kind can change the verdict
    Quantity.VALIDATION_LOSS: ABOUT_SCORES | ABOUT_TIME,
    Quantity.BITS_PER_BYTE: ABOUT_SCORES
    | ABOUT_TIME
    | {CaveatKind.OTHER_DATA, CaveatKind.OTHER_WINDOWS, CaveatKind.OTHER_TOKENIZER, CaveatKind.UNKNOWN_TOKENIZER},
    Quantity.HELLASWAG: ABOUT_LOSSES | ABOUT_TIME,
    Quantity.SPEED: frozenset(CaveatKind)
    - ABOUT_TIME
    - {CaveatKind.OTHER_BATCH, CaveatKind.OTHER_BLOCK_SIZE, CaveatKind.OTHER_PRECISION},
}


class RemedyKind(StrEnum):
    """What makes the results comparable."""

    EVALUATE = "evaluate"  # run the commands, then compare again
    EVALUATE_ALL_ITEMS = "evaluate all items"  # as EVALUATE, without a limit on the items
    EVALUATE_IN_THIS_PRECISION = "evaluate in this precision"  # shows the effect of the precision
    EVALUATE_BEST = "evaluate best"  # and compare the best checkpoints
    COMPARE_LAST = "compare last"  # the last steps of both runs
    RESUME = "resume"
    TRAIN_AGAIN = "train again"  # with the setting of the first run
    TRAIN_ON_SAME_TEXT = "train on same text"
    TRAIN_WITHOUT_RESUME = "train without resume"  # in one schedule
    READ_REPORTS = "read reports"  # of both runs
    TRAIN_SHORTER = "train shorter"  # with a schedule that ends at the smaller number of tokens
    TRAIN_PUBLISHED = "train published"  # measure the figures
    TRAIN_WITH_BLOCK_SIZE = "train with block size"
    TRAIN_WITH_LONGER_BLOCKS = "train with longer blocks"
    IDENTIFY_DATA = "identify data"  # see how the dataset was made
    READ_EQUAL_TOKENS = "read equal tokens"  # the table at equal tokens
    IGNORE_TIME = "ignore time"  # compare at equal tokens, or train on one machine
    IGNORE_TIME_OR_COMPILE = "ignore time or compile"  # compare at equal tokens, or train with one setting
    USE_BITS_PER_BYTE = "use bits per byte"
    NO_CHECKPOINT = "no checkpoint"  # the best step was not kept
    NO_CURVES = "no curves"  # fewer than two learning curves
    SAME_DATA_ONLY = "same data only"


@dataclass(frozen=True)
class Command:
    """The arguments of a regpt command. `model` names the model that the user must substitute for MODEL."""

    arguments: tuple[str, ...]
    model: str = ""


@dataclass(frozen=True)
class Remedy:
    kind: RemedyKind
    commands: tuple[Command, ...] = ()
    block_size: int = 0  # of TRAIN_WITH_BLOCK_SIZE


@dataclass(frozen=True)
class Caveat:
    """A reason, with the value of each model. The type of the values depends on the kind."""

    kind: CaveatKind
    values: Sequence[tuple[str, Any]]  # (name of the model, value)
    remedies: tuple[Remedy, ...]
    task: str = ""  # of a kind that concerns one task


def values_if_different(
    models: Sequence[ComparedModel], value: Callable[[ComparedModel], Any]
) -> list[tuple[str, Any]]:
    """Return the value of each model; an empty list if all are equal."""
    values = [(model.name, value(model)) for model in models]
    return values if are_different(values) else []


def are_different(values: Sequence[tuple[str, Any]]) -> bool:
    return len({value for _, value in values}) > 1


def command(*arguments: str) -> Command:
    return Command(arguments)


def evaluate_command(model: ComparedModel, *arguments: str) -> Command:
    """Return the command that evaluates a model. The path of a model outside runs is not stored: it says MODEL."""
    if model.is_run:
        return command("evaluate", model.command_name, *arguments)
    if model.run is not None and model.step is not None:
        return command("evaluate", str(model.run.paths.checkpoint(model.step)), *arguments)
    return Command(("evaluate", "MODEL", *arguments, "--into", str(model.path)), model.name)
