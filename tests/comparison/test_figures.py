"""What the figures of a comparison show."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from regpt.comparison import figures
from regpt.fairness.learning_curves import EvalPoint, LearningCurve, learning_curve
from regpt.fairness.loading import load_models
from regpt.tracking.journal import read_history
from tests.helpers.compared_runs import edit_journal


def test_curve_over_time_has_every_point_at_its_own_time(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With steps of 10, 20, … seconds, a stretched curve over tokens would differ."""
    edit_journal(runs / "a", lambda r: {**r, "seconds": 10.0 * r["step"]} if r["kind"] == "step" else r)
    found = learning_curve(load_models(["a", "b"], runs)[0])
    assert found
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure))
    figures.draw_learning_curves([found], "seconds", tmp_path / "loss.png")
    training, validation = (np.asarray(line.get_xydata()) * [60, 1] for line in drawn[0].axes[0].lines)
    assert list(training[:, 0]) == pytest.approx([10, 30, 60, 100, 150, 210])
    assert list(validation[:, 0]) == pytest.approx([0, 60, 210])
    assert list(validation[:, 1]) == [point.loss for point in read_history(runs / "a").validations]


def test_note_fits_above_the_figure_and_both_panels_use_its_width(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A longer note would make the axes narrow."""
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure))
    steps = [(100 * n, 10.0 * n, 3 + 7.85 * 0.8**n) for n in range(1, 200)]
    points = [EvalPoint(*step, 0.1) for step in steps[::50]]
    for over in ("tokens", "seconds", "flops"):
        figures.draw_learning_curves([LearningCurve("a", ("d", 1, 1), 1, steps, points)], over, tmp_path / "loss.png")
        drawn[-1].draw_without_rendering()
        whole, end = drawn[-1].axes
        (note,) = whole.texts
        assert note.get_window_extent().x1 <= drawn[-1].bbox.x1
        assert whole.get_position().x1 > 0.95 and end.get_position().x1 > 0.95
        assert whole.get_ylim()[1] > 9 and end.get_ylim()[1] < 3.5
