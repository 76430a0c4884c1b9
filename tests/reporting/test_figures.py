"""Figures of a report: for runs of any length, in light and dark, with the same bytes every time."""

import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from regpt.base.format import smoothed
from regpt.recipe.settings import load_recipe
from regpt.rendering.charts import POINTS, around, thin_out
from regpt.rendering.figure_style import (
    COLORS,
    DARK,
    INK,
    PAPER,
    Line,
    draw_lines,
    finish_axes,
    new_figure,
    spread_labels,
)
from regpt.rendering.loss_figure import LossCurve, log_ticks, loss_figure
from regpt.reporting import figures as report_figures
from regpt.reporting.figures import draw_hellaswag, draw_losses, draw_training_dynamics
from regpt.tracking.journal import History, StepRecord, TaskRecord, ValidationRecord
from regpt.tracking.run import Run

FOUR = ("{}.png", "{}.svg", "{}-dark.png", "{}-dark.svg")


def drawn(name: str, steps: int, every: int = 250) -> Run:
    """Make a run whose loss falls from 10.9 to 3, as in real runs."""
    recipe = load_recipe("gpt2-modern")
    batch = recipe.data.total_batch_tokens
    loss = [3 + 6 * math.exp(-n / 120) + 1.9 * math.exp(-n / 4000) for n in range(steps + 1)]
    looked = range(0, steps + 1, every)
    history = History(
        steps=[
            StepRecord(
                step=n, tokens=n * batch, loss=loss[n] + 0.05 * math.sin(n * n), gradient_norm=0.3 + 9 / n,
                learning_rate=1e-3, seconds=4.0 + n % 3, batch="",
            )
            for n in range(1, steps + 1)
        ],
        validations=[
            ValidationRecord(step=n, tokens=n * batch, loss=loss[n], windows=640, seconds=1.0, standard_error=0.015)
            for n in looked
        ],
        tasks=[
            TaskRecord(
                step=n, tokens=n * batch, task="hellaswag", items="10,042 items", digest="x", cut=0, path="",
                seconds=1.0, accuracy={"by_token": 0.25 + 0.05 * n / max(1, steps)},
                standard_errors={"by_token": 0.0045},
            )
            for n in looked
        ],
    )  # fmt: skip
    return Run(Path("/nowhere") / name, recipe, {}, history)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Collect the figures instead of writing them."""
    kept: list[Figure] = []
    monkeypatch.setattr(report_figures, "save_figure", lambda figure, path: kept.append(figure))
    return kept


@pytest.mark.parametrize("steps", [0, 1, 2, 300])
def test_figures_of_runs_of_any_length_are_light_and_dark(tmp_path: Path, steps: int) -> None:
    run = drawn(r"a run named $\frac$ and 模型", steps)
    draw_losses([run], tmp_path / "loss.png", [Line("published", 3.29)])
    draw_training_dynamics(run, tmp_path / "training_dynamics.png")
    draw_hellaswag([run], tmp_path / "hellaswag.png", [Line("chance", 0.25)], "10,042 items")
    for name in ("loss", "training_dynamics", "hellaswag"):
        for pattern in FOUR:
            assert (tmp_path / pattern.format(name)).stat().st_size > 5_000
        light, dark = (np.asarray(Image.open(tmp_path / f"{name}{end}.png").convert("L")) for end in ("", "-dark"))
        assert light[0, 0] == 255 and dark[0, 0] < 30
        assert np.median(light) > 200 and np.median(dark) < 60


def test_dark_figure_has_no_color_of_the_light_one(tmp_path: Path) -> None:
    runs = [drawn(f"run {number}", 700) for number in range(8)]
    draw_losses(runs, tmp_path / "loss.png", [Line("published", 3.29)])
    light, dark = ((tmp_path / f"loss{end}.svg").read_text(encoding="utf-8") for end in ("", "-dark"))
    for color in (INK, PAPER, *COLORS):
        assert color in light and color not in dark
        assert DARK[color] in dark


@pytest.mark.parametrize("dark", [False, True])
def test_every_color_has_enough_contrast_to_its_background(dark: bool) -> None:
    """WCAG 2 requires a contrast of 3 for graphics and 4.5 for text."""
    pick = DARK if dark else dict(zip(DARK, DARK, strict=True))
    for color in (INK, *COLORS):
        assert contrast(pick[color], pick[PAPER]) > (7 if color == INK else 3)


def contrast(one: str, other: str) -> float:
    low, high = sorted(luminance(color) for color in (one, other))
    return (high + 0.05) / (low + 0.05)


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_figure_files_of_the_same_run_are_byte_identical(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        draw_losses([drawn("run", 300)], tmp_path / folder / "loss.png", [Line("published", 3.29)])
    for pattern in FOUR:
        name = pattern.format("loss")
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_figure_of_the_longest_recipe_is_thinned_and_zoomed(tmp_path: Path, figures: list[Figure]) -> None:
    run = drawn("gpt2-modern", 38_146)
    draw_losses([run], tmp_path / "loss.png", [Line("GPT-2", 3.29)])
    whole, end = figures[0].axes
    for axes in (whole, end):
        assert all(len(line.get_xydata()) <= POINTS + 2 for line in axes.lines)
        assert run.tokens <= axes.get_xlim()[1] < 1.5 * run.tokens
    assert whole.get_xlim()[0] == 0 and whole.get_xscale() == "symlog" and whole.get_ylim()[1] > 10.9
    middle = whole.transAxes.inverted().transform(whole.transData.transform((run.tokens / 100, 5)))[0]
    assert 0.4 < middle < 0.8, "the fall from ln V has a large part of the width"
    assert end.get_xlim()[0] == run.tokens / 2
    low, high = end.get_ylim()
    assert low < 3.0 < high < 3.1, "the end fills its panel"
    assert [len(line.get_xydata()) > 70 for line in end.lines] == [True, True], "training and validation"


def test_figure_of_a_short_run_includes_its_first_loss(tmp_path: Path, figures: list[Figure]) -> None:
    draw_losses([drawn("short", 9)], tmp_path / "loss.png")
    (axes,) = figures[0].axes
    assert axes.get_ylim()[1] > 10.8 and axes.get_xscale() == "linear"


def test_published_losses_far_below_are_noted_but_not_drawn(tmp_path: Path, figures: list[Figure]) -> None:
    line = Line("published", 3.29)
    for steps in (4, 600):
        draw_losses([drawn("run", steps)], tmp_path / "loss.png", [line])
    lows = [figure.axes[0].get_ylim()[0] for figure in figures]
    told = ["far below" in " ".join(text.get_text() for text in figure.axes[0].texts) for figure in figures]
    assert lows[0] > 10 and lows[1] < 3.29
    assert told == [True, False]


def test_smoothing_averages_and_thinning_keeps_the_ends() -> None:
    values = [float(n % 7) for n in range(100)]
    for i, value in enumerate(smoothed(values, 9)):
        assert value == pytest.approx(np.mean(values[max(0, i - 8) : i + 1]))
    x, y = thin_out([float(n) for n in range(38_146)], [float(-n) for n in range(38_146)])
    assert (x[0], x[-1], y[-1]) == (0.0, 38_145.0, -38_145.0) and len(x) <= POINTS + 1
    assert thin_out([], []) == ([], [])


def test_smoothed_loss_follows_the_first_steps_and_averages_the_last() -> None:
    losses = [float(n % 7) for n in range(1000)]
    mean = LossCurve("run", range(1000), losses, [], [], []).smoothed
    assert mean[:19] == losses[:19]
    assert mean[999] == pytest.approx(np.mean(losses[980:1000]))


@pytest.mark.parametrize(("first", "last"), [(1e3, 1.1e4), (256, 6144), (524_288, 2e10), (0.01, 3.0)])
def test_ticks_of_a_logarithmic_axis_are_few_and_round(first: float, last: float) -> None:
    zero, *ticks = log_ticks(first, last)
    assert zero == 0 and 2 <= len(ticks) <= 8
    assert all(first <= tick <= last for tick in ticks)


def test_labels_of_lines_move_apart_only_if_they_overlap() -> None:
    heights = [20.0, 10.0, 10.0, 30.0, 10.0]
    places = spread_labels([10.0, 12.0, 13.0, 14.0, 200.0], heights)
    gaps = [above - below for below, above in pairwise(places)]
    needed = [(one + two) / 2 for one, two in pairwise(heights)]
    assert all(gap >= need - 1e-9 for gap, need in zip(gaps, needed, strict=True))
    assert places[-1] == 200.0


def test_labels_of_published_figures_do_not_overlap() -> None:
    figure, axes = new_figure("Loss")
    axes.plot([0, 1e9], [11.0, 3.0])
    finish_axes(axes)
    names = [Line(f"a rather long name of figure {n}", 3.0 + 0.02 * n) for n in range(4)]
    draw_lines(axes, names)
    figure.draw_without_rendering()
    boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: box.y0)
    assert len(boxes) == 4
    assert all(below.y1 <= above.y0 + 1 for below, above in pairwise(boxes))
    inside = axes.get_window_extent()
    assert all(box.x0 >= inside.x1 for box in boxes), "a name lies on the curves"


def test_legend_is_below_the_axes_and_shortens_long_names(tmp_path: Path, figures: list[Figure]) -> None:
    runs = [drawn(f"{'a-long-name-' * 9}{number}", 20) for number in range(8)]
    draw_losses(runs, tmp_path / "loss.png")
    figure = figures[0]
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert legend.y1 <= figure.axes[0].get_window_extent().y0
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.x1
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(names) == 8 and all(re.search(rf"….*{number}, validation", names[number]) for number in range(8))


def test_nan_loss_is_left_out_of_the_curve_and_its_mean(tmp_path: Path, figures: list[Figure]) -> None:
    run = drawn("run", 40)
    steps = [replace(step, loss=math.nan if step.step == 20 else step.loss) for step in run.history.steps]
    draw_losses([replace(run, history=replace(run.history, steps=steps))], tmp_path / "loss.png")
    lines = [np.asarray(line.get_xydata()) for line in figures[0].axes[0].lines]
    assert [len(line) for line in lines][:2] == [39, 39]
    assert all(np.isfinite(line).all() for line in lines)


def test_curve_of_averaged_weights_hides_no_other_and_is_not_hidden() -> None:
    """Its losses are often almost those of the last weights."""
    losses = [5.0, 4.0, 3.5]
    last = LossCurve("last", [1.0, 2.0, 3.0], losses, [1.0, 2.0, 3.0], losses, around(losses, [0.1] * 3))
    averaged = replace(last, label="averaged", x=[], losses=[], ranges=around(losses, [0.0] * 3), dashed=True)
    axes = loss_figure([last, averaged], "Training tokens", str).axes[0]
    below, above = (next(line for line in axes.lines if line.get_label() == name) for name in ("last", "averaged"))
    assert (below.get_linestyle(), above.get_linestyle()) == ("-", "--")
    assert above.get_zorder() > below.get_zorder() and above.get_color() != below.get_color()
