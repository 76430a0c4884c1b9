"""Format numbers, durations, sizes, money and paths for people. This is the only module that does."""

import math
from collections.abc import Sequence
from datetime import datetime, tzinfo
from itertools import accumulate

NO_VALUE = "—"
CENTURY = 36_525 * 86_400.0  # seconds
TIME_UNITS = ((86_400, "days"), (3_600, "hours"), (60, "minutes"), (1, "seconds"))


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Return the moving average: the mean of each value and those before it, `window` in all."""
    sums = [0.0, *accumulate(values)]
    return [(sums[i] - sums[max(0, i - window)]) / min(i, window) for i in range(1, len(sums))]


def three_digits(value: float) -> str:
    """Round to three significant digits: '113,000', '0.72'."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:g}"


def number_range(one: float, other: float) -> str:
    """Format both ends with three digits, the smaller first: '113,000 to 193,000'."""
    return f"{three_digits(min(one, other))} to {three_digits(max(one, other))}"


def short_count(count: float) -> str:
    """Format a count with three digits and an SI prefix: '1.05 M', '10 G'."""
    return with_prefix(count, ("", "k", "M", "G", "T"))


def byte_size(size: float) -> str:
    """Format bytes with three digits, in decimal units: '498 MB', '1.49 GB'."""
    return with_prefix(size, ("bytes", "kB", "MB", "GB", "TB"))


def gigabytes(size: float) -> str:
    """Format bytes in one unit, for a column of sizes that add up: '0.49 GB', '11.60 GB'."""
    return f"{size / 1e9:,.2f} GB"


def with_prefix(value: float, units: Sequence[str]) -> str:
    """Divide by the largest power of 1,000 that leaves at least 1, and add its unit."""
    rounded = float(f"{value:.3g}")  # so that 999,999 becomes 1 M, not 1,000 k
    power = min(len(units) - 1, int(math.log10(rounded) // 3)) if rounded >= 1000 else 0
    return f"{three_digits(rounded / 1000**power)} {units[power]}".strip()


def percent(share: float) -> str:
    """Format a share as a percentage with three digits: '36.6 %'."""
    return f"{three_digits(100 * share)} %"


def percent_range(one: float, other: float) -> str:
    """Format a range of shares as percentages: '80 to 100 %'."""
    return f"{number_range(100 * one, 100 * other)} %"


def with_error(value: float, error: float, sign: bool = False) -> str:
    """Format a loss or an accuracy with its standard error, if there is one: '3.2905 ± 0.0031'.

    `sign` adds a plus sign to positive values.
    """
    return (f"{value:+.4f}" if sign else f"{value:.4f}") + (f" ± {error:.4f}" if error else "")


def in_bits_per_byte(value: float) -> str:
    """Format the bits per byte of a loss that precedes them: ' (1.8012 bits per byte)'; empty for 0, unknown."""
    return f" ({value:.4f} bits per byte)" if value else ""


def scientific(value: float, digits: int = 7) -> str:
    """Format small and large numbers with an exponent, without trailing zeros: '6e-4', '1.49e19'; others as 0.9."""
    if value == 0 or 0.01 <= abs(value) < 1e6:
        return f"{value:.{digits}g}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"


def teraflops(flops_per_second: float) -> str:
    """Format a speed: '209.5 TFLOP/s'."""
    return f"{flops_per_second / 1e12:,.4g} TFLOP/s"


def money(usd: float) -> str:
    """Format an amount of money to the cent: '12.40 USD'."""
    return f"{usd:,.2f} USD"


def duration(seconds: float) -> str:
    """Format a duration in its two largest units: '0.3 s', '45 s', '2 min 32 s', '3 h 12 min', '4 d 3 h'.

    A dash stands for a duration that is NaN, infinite or longer than a century, as of a run without a real end.
    """
    if not seconds < CENTURY:
        return NO_VALUE
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f}".removesuffix(".0") + " s"
    if round(seconds) < 60:
        return f"{round(seconds)} s"
    if round(seconds) < 3600:
        return two_units(round(seconds), 60, "min", "s")
    if round(seconds / 60) < 24 * 60:
        return two_units(round(seconds / 60), 60, "h", "min")
    return two_units(round(seconds / 3600), 24, "d", "h")


def clock_time(at: float, pattern: str, zone: tzinfo | None = None) -> str:
    """Format a moment, given in seconds since 1970, in the local time zone or another: '14:05'.

    A dash stands for a moment that no calendar has, as a clock that was wrong may have written.
    """
    try:
        return datetime.fromtimestamp(at, zone).strftime(pattern)
    except (OverflowError, ValueError, OSError):
        return NO_VALUE


def two_units(count: int, ratio: int, large: str, small: str) -> str:
    """Divide a count of the small unit into both units: '2 min 32 s'. The small one is left out if it is zero."""
    whole, rest = divmod(count, ratio)
    return f"{whole:,} {large}" + (f" {rest} {small}" if rest else "")


def duration_range(one: float, other: float) -> str:
    """Format a range of durations, given in seconds, in one unit: '28.1 to 50.2 hours'."""
    size, name = time_unit(max(one, other))
    return f"{number_range(one / size, other / size)} {name}"


def time_unit(seconds: float) -> tuple[int, str]:
    """Return the seconds and the name of the largest unit that fits at least three times: (3600, 'hours')."""
    return next((unit for unit in TIME_UNITS if seconds >= 3 * unit[0]), TIME_UNITS[-1])


def shown(path: object) -> str:
    """Format a path for a message or a record: escape line ends, control characters and undecodable bytes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))
