"""The vocabulary of verdicts: what was compared, with which outcome, and why a test is missing."""

from enum import StrEnum

LEVEL = 0.05  # of significance, two-sided, for every test


class Quantity(StrEnum):
    VALIDATION_LOSS = "validation loss"  # nats per token
    BITS_PER_BYTE = "bits per byte"  # of the text that two models with different tokenizers were validated on
    HELLASWAG = "HellaSwag accuracy"
    SPEED = "speed"  # tokens per second


class Outcome(StrEnum):
    """How the first value relates to the second at the 5 % level."""

    LOWER = "lower"
    HIGHER = "higher"
    FASTER = "faster"
    SLOWER = "slower"
    INDISTINGUISHABLE = "indistinguishable"  # tested, and not significant
    NOT_TESTED = "not tested"

    @property
    def is_difference(self) -> bool:
        return self not in (Outcome.INDISTINGUISHABLE, Outcome.NOT_TESTED)


class NotTested(StrEnum):
    """Why two values were not tested."""

    NOT_MEASURED = "not measured"  # at least one of the two
    OTHER_DATA = "other data"  # other windows, block size or dataset
    OTHER_ITEMS = "other items"
    OTHER_DEVICES = "other devices"
    NOT_FINITE = "not finite"  # a loss is NaN or infinite
    NO_STANDARD_ERRORS = "no standard errors"
    TOO_FEW_WINDOWS = "too few windows"
    TOO_FEW_SEEDS = "too few seeds"
    TOO_FEW_STEPS = "too few steps"
    BUSY_MACHINE = "busy machine"  # other programs used the processors
    UNKNOWN_LOAD = "unknown load"  # it is not recorded what other programs did
    UNEVEN_SPEED = "uneven speed"  # groups of steps differ so much that other work is the likely reason
    UNKNOWN_CORRELATION = "unknown correlation"  # the two standard errors alone do not decide
    NEAR_GUESSING = "near guessing"  # neither model is significantly better than a random choice
    UNREADABLE_PREDICTIONS = "unreadable predictions"


def by_sign(difference: float, significant: bool) -> Outcome:
    """Return LOWER or HIGHER where a difference is significant, else INDISTINGUISHABLE."""
    if not significant:
        return Outcome.INDISTINGUISHABLE
    return Outcome.LOWER if difference < 0 else Outcome.HIGHER
