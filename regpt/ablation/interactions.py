"""What a change does inside a stack of changes, compared with what it does alone.

With the rest of the stack as second factor, a change makes a 2 x 2 factorial design. The interaction is the difference
of the two effects of the change, one in each half (Yates 1937, The Design and Analysis of Factorial Experiments).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto

from regpt.ablation.design import BASE, Design, Trial, stack_without
from regpt.ablation.paired import Differences, differences, p_value
from regpt.stats.outcome import LEVEL
from regpt.stats.paired import holm_adjusted


class Interplay(Enum):
    """How the effect of a change inside the stack differs from its effect alone."""

    WORTH_MORE = auto()  # it lowers the loss more, or raises it less
    WORTH_LESS = auto()
    NOT_FOUND = auto()
    ONE_SEED = auto()


@dataclass(frozen=True)
class Interaction:
    """A change alone and inside the stack of all changes."""

    arm: str
    alone: Differences  # change - base
    inside: Differences  # whole stack - stack without the change
    adjusted_p_value: float = 1.0

    @property
    def contrast(self) -> Differences:
        """The interaction: inside - alone."""
        return differences(self.inside.differences, self.alone.differences)

    @property
    def interplay(self) -> Interplay:
        if len(self.alone.differences) < 2:
            return Interplay.ONE_SEED
        if self.adjusted_p_value >= LEVEL:
            return Interplay.NOT_FOUND
        return Interplay.WORTH_MORE if self.contrast.mean < 0 else Interplay.WORTH_LESS


def interactions_of(design: Design, losses: Mapping[Trial, float]) -> tuple[Interaction, ...]:
    """Compare each change alone with the change inside the stack; none without --leave-one-out.

    p-values are corrected over the changes (Holm 1979).
    """

    def by_seed(arm: str) -> list[float]:
        return [losses[Trial(arm, seed)] for seed in design.seeds]

    found = [
        Interaction(
            arm,
            differences(by_seed(arm), by_seed(BASE)),
            differences(by_seed(stack), by_seed(without)),
        )
        for arm, stack, without in stack_without(design)
    ]
    p_values = [p_value(one.contrast.differences) for one in found]
    is_one_contrast = len(found) == 2  # two changes have the same interaction
    adjusted = p_values if is_one_contrast else holm_adjusted(p_values)
    return tuple(replace(one, adjusted_p_value=p) for one, p in zip(found, adjusted, strict=True))
