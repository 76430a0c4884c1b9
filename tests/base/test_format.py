"""Each format, by a table of values: the ends of its units, rounding across them, and what is not finite."""

from datetime import UTC

import pytest

from regpt.base.format import (
    byte_size,
    clock_time,
    duration,
    duration_range,
    gigabytes,
    money,
    number_range,
    percent,
    percent_range,
    scientific,
    short_count,
    smoothed,
    teraflops,
    three_digits,
    time_unit,
    with_error,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (0, "0 s"),
        (0.34, "0.3 s"),
        (7, "7 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (152, "2 min 32 s"),
        (3_599.4, "59 min 59 s"),
        (3_599.6, "1 h"),
        (11_520, "3 h 12 min"),
        (84_600, "23 h 30 min"),
        (86_399, "1 d"),
        (90_000, "1 d 1 h"),
        (1e8, "1,157 d 10 h"),
        (3.1e9, "35,879 d 15 h"),
        (3.2e9, "—"),
        (1e300, "—"),
        (float("nan"), "—"),
        (float("inf"), "—"),
    ],
)
def test_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("one", "other", "text"),
    [
        (90, 40, "40 to 90 seconds"),
        (1_800, 7_200, "30 to 120 minutes"),
        (101_160, 180_720, "28.1 to 50.2 hours"),
        (2e6, 1e6, "11.6 to 23.1 days"),
    ],
)
def test_duration_range_has_one_unit_for_both_ends(one: float, other: float, text: str) -> None:
    assert duration_range(one, other) == text


def test_time_unit_fits_at_least_three_times() -> None:
    assert [time_unit(seconds)[1] for seconds in (0.0, 179, 180, 10_800, 259_200)] == [
        "seconds",
        "seconds",
        "minutes",
        "hours",
        "days",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.7249, "0.725"),
        (1e-7, "1e-07"),
        (99.96, "100"),
        (999.6, "1,000"),
        (112_960, "113,000"),
        (-1_234_567, "-1,230,000"),
    ],
)
def test_three_digits_are_significant_ones(value: float, text: str) -> None:
    assert three_digits(value) == text


def test_number_range_begins_with_the_smaller_end() -> None:
    assert number_range(193_000, 113_000) == number_range(113_000, 193_000) == "113,000 to 193,000"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (999.6, "1 k"),
        (1_048_576, "1.05 M"),
        (999_999, "1 M"),
        (1e10, "10 G"),
        (2.5e16, "25,000 T"),
    ],
)
def test_short_count_has_an_si_prefix(count: float, text: str) -> None:
    assert short_count(count) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (512, "512 bytes"), (498_000_000, "498 MB"), (1_493_000_000, "1.49 GB"), (8.5e10, "85 GB")],
)
def test_byte_size_has_a_decimal_unit(size: float, text: str) -> None:
    assert byte_size(size) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0 %"), (0.0027, "0.27 %"), (0.3661, "36.6 %"), (1, "100 %"), (1.03, "103 %")]
)
def test_percent_has_three_digits(share: float, text: str) -> None:
    assert percent(share) == text


def test_column_of_sizes_has_one_unit() -> None:
    assert [gigabytes(size) for size in (494e6, 11.6e9, 2e13)] == ["0.49 GB", "11.60 GB", "20,000.00 GB"]


def test_percent_range_names_its_unit_once() -> None:
    assert percent_range(1.0, 0.8) == "80 to 100 %"


def test_error_of_zero_is_left_out() -> None:
    assert with_error(3.29054, 0.00312) == "3.2905 ± 0.0031"
    assert with_error(3.29054, 0.0) == "3.2905"
    assert with_error(0.01, 0.002, sign=True) == "+0.0100 ± 0.0020"


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0, 7, "0"),
        (6e-4, 7, "6e-4"),
        (1.8e-3, 7, "1.8e-3"),
        (0.1, 7, "0.1"),
        (1e-8, 7, "1e-8"),
        (5.98765e-4, 3, "5.99e-4"),
        (1.4912e19, 3, "1.49e19"),
        (2e10, 1, "2e10"),
        (-3e-5, 3, "-3e-5"),
    ],
)
def test_exponent_has_no_padding_and_no_trailing_zeros(value: float, digits: int, text: str) -> None:
    assert scientific(value, digits) == text


def test_speed_and_money_carry_their_units() -> None:
    assert teraflops(209.5e12) == "209.5 TFLOP/s"
    assert money(1_234.5) == "1,234.50 USD"


def test_moving_average_covers_the_values_so_far() -> None:
    assert smoothed([1, 2, 3, 4], 2) == [1, 1.5, 2.5, 3.5]
    assert smoothed([], 5) == []


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (0, "1970-01-01 00:00"),
        (1_792_890_000, "2026-10-25 01:00"),  # where summer time ends in Europe
        (-3_600, "1969-12-31 23:00"),
        (1e18, "—"),
        (-1e18, "—"),
        (float("nan"), "—"),
        (float("inf"), "—"),
    ],
)
def test_clock_time_is_a_dash_where_no_calendar_has_it(at: float, text: str) -> None:
    assert clock_time(at, "%Y-%m-%d %H:%M", UTC) == text
