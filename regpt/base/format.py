"""How numbers, token counts and durations are written, in one place."""

import math
from collections.abc import Sequence
from itertools import accumulate


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value and those just before it, `window` in all."""
    sums = [0.0, *accumulate(values)]
    return [(sums[i] - sums[max(0, i - window)]) / min(i, window) for i in range(1, len(sums))]


def short_count(tokens: float) -> str:
    """With three digits: 1.05 M."""
    power = min(4, int(math.log10(tokens) // 3)) if tokens >= 1000 else 0
    return f"{tokens / 1000**power:.3g} {['', 'k', 'M', 'G', 'T'][power]}".strip()


def three_digits(value: float) -> str:
    """With three of them: 113,000 or 0.72."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:g}"


def with_error(value: float, error: float) -> str:
    return f"{value:.4f}" + (f" ± {error:.4f}" if error else "")


def shown(path: object) -> str:
    """Write a path for a message or a record: line ends, control characters and bytes that are no text as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))
