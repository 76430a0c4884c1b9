"""Whether two models that answered the same questions differ: McNemar's test, and an interval by the bootstrap."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
LEVEL = 0.05


@dataclass(frozen=True)
class Paired:
    """Of N items: how often each of two models was right, and how often only one."""

    items: int
    right: tuple[int, int]
    only: tuple[int, int]  # right where the other is wrong

    @property
    def difference(self) -> float:
        """In accuracy, the first less the second."""
        return (self.only[0] - self.only[1]) / self.items

    @property
    def p_value(self) -> float:
        """Exact, two-sided (McNemar 1947): how likely so uneven a split of the items is on which just one was right,
        if each of the two were as likely to be that one."""
        fewer, apart = min(self.only), sum(self.only)
        ways, total = 1, 0  # binomial coefficients, exactly
        for number in range(fewer + 1):
            total += ways
            ways = ways * (apart - number) // (number + 1)
        return min(1.0, 2 * total / 2**apart)

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """95 % of the differences that 10,000 resamples of the items have (Efron 1979)."""
        both = self.items - sum(self.only)
        shares = np.array([self.only[0], self.only[1], both]) / self.items
        drawn = np.random.default_rng(seed).multinomial(self.items, shares, size=RESAMPLES)
        low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / self.items, [LEVEL / 2, 1 - LEVEL / 2])
        return float(low), float(high)

    @property
    def is_difference(self) -> bool:
        return self.p_value < LEVEL


def paired(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Paired:
    """From which items each model got right, in one order.  (N), (N)"""
    assert first.shape == second.shape
    return Paired(
        items=len(first),
        right=(int(first.sum()), int(second.sum())),
        only=(int((first & ~second).sum()), int((second & ~first).sum())),
    )
