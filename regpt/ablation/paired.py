"""Differences that are paired by seed: their mean, its interval, its p-value, and what they could have shown.

`regpt/stats/seeds.py` has the formulas and their sources.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from regpt.stats.seeds import MeanDifference, paired_difference


class Paired:
    """A value for each seed, whose mean is tested against 0."""

    differences: tuple[float, ...]  # by seed

    @property
    def difference(self) -> MeanDifference:
        """The mean, with the error that this value's own spread over seeds gives."""
        return paired_difference(self.differences)

    @property
    def mean(self) -> float:
        return self.difference.mean

    @property
    def error(self) -> float:
        """Standard error of the mean; infinite for one seed."""
        return self.difference.error

    @property
    def half_width(self) -> float:
        """Half the width of the 95 % interval."""
        return self.difference.half_width

    @property
    def smallest_detectable(self) -> float:
        return self.difference.smallest_detectable


@dataclass(frozen=True)
class Differences(Paired):
    """Differences of two arms, or of two such differences."""

    differences: tuple[float, ...]


def differences(ours: Sequence[float], theirs: Sequence[float]) -> Differences:
    """Subtract values of the same seeds."""
    return Differences(tuple(one - other for one, other in zip(ours, theirs, strict=True)))


def p_value(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of a paired t-test; 1 for one seed, and where all differences are 0."""
    return paired_difference(differences).p_value
