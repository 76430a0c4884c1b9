"""Losses at equal tokens and at equal time, and where a loss is first reached."""

from pathlib import Path

import pytest

from regpt.fairness.learning_curves import (
    CurveValue,
    EvalPoint,
    LearningCurve,
    first_time_below,
    learning_curve,
    losses_at_equal_time,
    losses_at_equal_tokens,
)
from regpt.fairness.loading import load_models
from regpt.tracking.journal import read_history
from tests.helpers.compared_runs import edit_journal, replace_values


def curve(name: str, *points: tuple[int, float, float]) -> LearningCurve:
    return LearningCurve(name, ("d", 1, 1), 1, [], [EvalPoint(*point, 0.1) for point in points])


STEEP = curve("steep", (0, 0.0, 10.0), (100, 10.0, 6.0), (200, 30.0, 4.0))
FLAT = curve("flat", (0, 0.0, 10.0), (80, 4.0, 7.0), (160, 8.0, 5.0), (240, 12.0, 5.5))


def test_losses_at_equal_tokens_are_measured_or_interpolated() -> None:
    rows = dict(losses_at_equal_tokens([STEEP, FLAT]))
    assert list(rows) == [80, 100, 160, 200]
    assert rows[100] == [CurveValue(6.0, 0.1, True), CurveValue(pytest.approx(6.5), 0.0, False)]  # type: ignore[arg-type]
    assert rows[200] == [CurveValue(4.0, 0.1, True), CurveValue(pytest.approx(5.25), 0.0, False)]  # type: ignore[arg-type]
    common = dict(
        losses_at_equal_tokens([STEEP, curve("twin", (0, 0.0, 9.0), (100, 9.0, 5.0), (200, 18.0, 4.5), (300, 27.0, 3))])
    )
    assert list(common) == [100, 200]
    assert all(found and found.is_measured for row in common.values() for found in row)


def test_losses_at_equal_time_use_the_evaluations_of_the_shortest_run() -> None:
    rows = dict(losses_at_equal_time([STEEP, FLAT]))
    assert list(rows) == [4.0, 8.0, 12.0]
    assert rows[12.0] == [CurveValue(pytest.approx(5.8), 0.0, False), CurveValue(5.5, 0.1, True)]  # type: ignore[arg-type]


def test_loss_is_reached_where_the_curve_first_crosses_it() -> None:
    first = first_time_below(FLAT, 5.5)
    assert first and (first.tokens, first.seconds, first.is_measured) == (pytest.approx(140), pytest.approx(7), False)
    own = first_time_below(STEEP, 4.0)
    assert own and (own.tokens, own.seconds, own.is_measured) == (200, 30.0, True)
    assert first_time_below(FLAT, 4.0) is None


def test_training_time_excludes_validations(runs: Path) -> None:
    edit_journal(runs / "a", replace_values("validation", seconds=1000.0))
    model = load_models(["a", "b"], runs)[0]
    found = learning_curve(model)
    seconds = [step.seconds for step in read_history(runs / "a").steps]
    assert found and found.evaluations[-1].seconds == pytest.approx(sum(seconds))
    assert found.evaluations[1].seconds == pytest.approx(sum(seconds[:3]))
    assert found.evaluations[0].seconds == 0.0
