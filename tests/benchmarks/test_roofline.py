"""The roofline fit reproduces its constants, predicts held-out speeds, and docs/plan.md shows its tables."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.roofline import (
    card_table,
    fit_constants,
    fit_table,
    published_table,
    recipe_table,
    speed_table,
    split_for_fit,
)
from regpt.base.cards import find_card
from regpt.plan.published_speeds import ELSEWHERE, MODELS, PUBLISHED
from regpt.plan.roofline import HIGH, LOW, PASSES, SHARE, seconds_per_token

PAGE = Path(__file__).parent.parent.parent / "docs" / "plan.md"


def test_fit_on_half_of_the_speeds_gives_the_constants() -> None:
    share, passes = fit_constants(split_for_fit()[0])
    assert share == pytest.approx(SHARE, abs=0.005) and passes == pytest.approx(PASSES, abs=0.05)


def test_fit_predicts_held_out_speeds_within_15_percent() -> None:
    fit, held_out = split_for_fit()
    assert len(held_out) >= 4 and not set(fit) & set(held_out)
    for speed in held_out:
        assert speed.predicted == pytest.approx(speed.tokens_per_second, rel=0.15), speed


def test_fit_table_shows_the_ratios_of_three_fits() -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in fit_table()[2:]]
    assert rows[-1][3:6] == ["1.00, 11.7", "0.76, 6.6", "1.00, 11.8"]
    for speed, row in zip(PUBLISHED, rows[:-1], strict=True):
        assert float(row[3]) == pytest.approx(speed.predicted / speed.tokens_per_second, abs=0.006), speed
    other_half = sorted(abs(float(row[4]) - 1) for row in rows[:-1] if row[1].endswith("●"))
    assert other_half[3] <= 0.14 and other_half[4] == pytest.approx(0.17)


def test_fit_recovers_constants_from_synthetic_speeds() -> None:
    synthetic = [
        replace(s, tokens_per_second=1 / seconds_per_token(MODELS[s.model], find_card(s.card), 0.6, 9.0))
        for s in PUBLISHED
    ]
    assert fit_constants(synthetic) == pytest.approx((0.6, 9.0))


def test_range_contains_all_published_speeds_but_one() -> None:
    outside = [
        speed
        for speed in (*PUBLISHED, *ELSEWHERE)
        if not LOW * speed.predicted <= speed.tokens_per_second <= HIGH * speed.predicted
    ]
    assert [speed.card for speed in outside] == ["RTX 5090"]


@pytest.mark.parametrize("table", [speed_table, published_table, recipe_table, card_table])
def test_plan_page_shows_the_current_table(table: Callable[[], list[str]]) -> None:
    assert "\n".join(table()) in PAGE.read_text(encoding="utf-8")
