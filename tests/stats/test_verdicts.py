"""Verdicts on planted runs that are equal, different or not comparable."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from regpt.fairness.baselines import Baseline
from regpt.fairness.claims import claims_on_runs
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import load_recipe
from regpt.reporting.sections import verdict_rows
from regpt.reporting.summary import baseline_paragraph, claim_at_equal_tokens, summary
from regpt.stats.describe import describe_test, difference_text
from regpt.stats.losses import ErrorBoundsTest
from regpt.stats.outcome import NotTested, Outcome, Quantity
from regpt.stats.paired import PairedAccuracyTest, PairedLossTest, students_t_p_value, students_t_threshold
from regpt.stats.throughput import ThroughputTest
from regpt.stats.verdicts import Verdict, speed_verdict, verdicts
from regpt.tracking.environment import DataInfo, DeviceInfo, Environment, SourceInfo
from regpt.tracking.events import Started
from regpt.tracking.journal import EventRecord, History, StepRecord, TaskRecord, ValidationRecord
from regpt.tracking.predictions import Predictions
from regpt.tracking.run import Run
from regpt.tracking.window_losses import write_window_losses

DEVICE = DeviceInfo(name="a card", place="cuda", precision="bfloat16", peak_flops=1e12)


def planted(
    folder: Path,
    loss: float = 3.0,
    error: float = 0.01,
    windows: int = 640,
    right: int = 300,
    asked: str = "these",
    seconds: float = 1.0,
    device: str = "a card",
    data: str = "a" * 64,
) -> Run:
    """A run of 120 steps with these figures; it is right on the first `right` of 1,000 HellaSwag items."""
    steps = [
        StepRecord(
            step=n, tokens=1024 * n, loss=3.0, gradient_norm=1.0, learning_rate=1e-3, batch="",
            seconds=seconds * (1 + 0.02 * (n % 5)),
        )
        for n in range(1, 121)
    ]  # fmt: skip
    numbers = np.arange(1000)
    losses = np.ones((1000, 4))
    losses[numbers, np.where(numbers < right, 0, 1)] = 0.5
    ones = np.ones((1000, 4), dtype=np.int64)
    zeros = np.zeros(1000, dtype=np.int64)
    answers = Predictions(
        "hellaswag", "10,042 items", asked, 1000, True, 0, numbers, ("",) * 1000, zeros, losses, ones, ones, ones
    )
    folder.mkdir()
    answers.write(folder / "answers.parquet")
    accuracy = answers.accuracy(answers.metrics[0])
    task = TaskRecord(
        step=120, tokens=122_880, task="hellaswag", items="10,042 items", digest=asked, cut=0, path="answers.parquet",
        accuracy={"by_token": accuracy.value}, standard_errors={"by_token": accuracy.error}, seconds=1.0, count=1000,
    )  # fmt: skip
    validation = ValidationRecord(
        step=120, tokens=122_880, loss=loss, windows=windows, seconds=1.0, standard_error=error
    )
    environment = Environment(
        device=replace(DEVICE, name=device),
        data=DataInfo(digest=data, train_tokens=1_000_000, source=SourceInfo(description="some text")),
    )
    started = EventRecord(step=0, detail=Started(device=device), at=0.0)
    history = History(steps=steps, validations=[validation], tasks=[task], events=[started])
    return Run(folder, load_recipe("demo-modern"), environment, history)


def with_windows(run: Run, apart: float, noise: float) -> Run:
    """The same, with the loss of each window kept: windows differ by 1 nat, and this run by `apart` and some noise."""
    look = run.history.validations[-1]
    hard = np.random.default_rng(1).normal(4.0, 1.0, look.windows)
    own = hard + apart + np.random.default_rng(2).normal(0.0, noise, look.windows) * (apart != 0)
    write_window_losses(run.path / "windows.npy", own)
    history = replace(run.history, validations=[replace(look, path="windows.npy", loss=float(own.mean()))])
    return replace(run, history=history)


@pytest.mark.parametrize(
    ("apart", "outcome"), [(-0.02, Outcome.LOWER), (0.02, Outcome.HIGHER), (0.001, Outcome.INDISTINGUISHABLE)]
)
def test_window_losses_show_what_standard_errors_cannot(tmp_path: Path, apart: float, outcome: Outcome) -> None:
    one = with_windows(planted(tmp_path / "a"), apart, 0.1)
    two = with_windows(planted(tmp_path / "b"), 0.0, 0.1)
    verdict = by_quantity(one, two)[Quantity.VALIDATION_LOSS]
    assert verdict.outcome is outcome
    assert isinstance(verdict.test, PairedLossTest) and verdict.test.windows == 640
    (two.path / "windows.npy").unlink()  # as of a run that did not keep them
    verdict = by_quantity(one, two)[Quantity.VALIDATION_LOSS]
    assert isinstance(verdict.test, ErrorBoundsTest) and not verdict.outcome.is_difference


def by_quantity(run: Run, other: Run) -> dict[Quantity, Verdict]:
    return {verdict.quantity: verdict for verdict in verdicts(run, other)}


def test_equal_runs_are_indistinguishable(tmp_path: Path) -> None:
    found = by_quantity(planted(tmp_path / "a"), planted(tmp_path / "b"))
    assert {verdict.outcome for verdict in found.values()} == {Outcome.INDISTINGUISHABLE}


def test_clear_difference_has_the_opposite_outcome_when_swapped(tmp_path: Path) -> None:
    better = planted(tmp_path / "a", loss=2.9, right=360, seconds=0.8)
    worse = planted(tmp_path / "b", loss=3.0, right=300, seconds=1.0)
    found = verdicts(better, worse)
    assert [verdict.outcome for verdict in found] == [Outcome.LOWER, Outcome.HIGHER, Outcome.FASTER]
    assert [one.outcome for one in verdicts(worse, better)] == [Outcome.HIGHER, Outcome.LOWER, Outcome.SLOWER]
    loss, hellaswag, speed = found
    assert isinstance(loss.test, ErrorBoundsTest) and loss.test.thresholds == pytest.approx((0, 0.0393), abs=1e-4)
    assert (loss.ours, loss.theirs, loss.difference) == pytest.approx((2.9, 3.0, -0.1))
    assert isinstance(hellaswag.test, PairedAccuracyTest) and hellaswag.test.p_value == pytest.approx(1.7e-18, rel=0.05)
    assert hellaswag.difference == pytest.approx(0.06)
    assert isinstance(speed.test, ThroughputTest) and speed.ratio == pytest.approx(1.25)
    text = "\n\n".join(summary(better, [Baseline("b", worse.recipe, worse)]))
    for values in ("2.9000 vs 3.0000", "36 % vs 30 %", "1,231 vs 985 tokens/s"):
        assert values in text
    rows = verdict_rows(better, worse)
    assert [row.test for row in rows] == [describe_test(verdict, worse.id) for verdict in found]
    assert [row.difference for row in rows] == [difference_text(verdict) for verdict in found]


def test_difference_within_the_errors_is_not_claimed(tmp_path: Path) -> None:
    """The loss differs by 0.02 with two errors of 0.01; 4 of 1,000 items are answered differently."""
    found = by_quantity(planted(tmp_path / "a", loss=2.98, right=304, seconds=0.99), planted(tmp_path / "b"))
    assert not any(verdict.outcome.is_difference for verdict in found.values())
    assert found[Quantity.VALIDATION_LOSS].reason is NotTested.UNKNOWN_CORRELATION
    text = "\n\n".join(summary(planted(tmp_path / "c", loss=2.98, right=304), []))
    assert not {"better", "faster", "lower", "higher"} & set(text.replace("(", " ").split())


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"windows": 320}, NotTested.OTHER_DATA),
        ({"data": "b" * 64}, NotTested.OTHER_DATA),
        ({"error": 0.0}, NotTested.NO_STANDARD_ERRORS),
    ],
)
def test_losses_on_other_windows_are_not_compared(tmp_path: Path, changed: dict[str, Any], reason: NotTested) -> None:
    one, two = planted(tmp_path / "a", loss=1.0), planted(tmp_path / "b", **changed)
    verdict = by_quantity(one, two)[Quantity.VALIDATION_LOSS]
    assert (verdict.outcome, verdict.reason) == (Outcome.NOT_TESTED, reason)
    text = "\n\n".join(summary(one, [Baseline("b", two.recipe, two)]))
    assert "lower" not in text


def test_predictions_of_other_items_are_not_compared(tmp_path: Path) -> None:
    one, other = planted(tmp_path / "a", right=900), planted(tmp_path / "b", asked="others")
    verdict = by_quantity(one, other)[Quantity.HELLASWAG]
    assert (verdict.outcome, verdict.reason) == (Outcome.NOT_TESTED, NotTested.OTHER_ITEMS)


def test_missing_predictions_are_named(tmp_path: Path) -> None:
    one, other = planted(tmp_path / "a"), planted(tmp_path / "b")
    (other.path / "answers.parquet").unlink()
    verdict = by_quantity(one, other)[Quantity.HELLASWAG]
    assert (verdict.outcome, verdict.reason) == (Outcome.NOT_TESTED, NotTested.UNREADABLE_PREDICTIONS)
    assert str(other.path / "answers.parquet") in verdict.problem


def test_speeds_on_other_devices_or_of_few_steps_are_not_compared(tmp_path: Path) -> None:
    one, other = planted(tmp_path / "a", seconds=0.1), planted(tmp_path / "b", device="another card")
    assert speed_verdict(one, other).reason is NotTested.OTHER_DEVICES
    short = replace(one, history=replace(one.history, steps=one.history.steps[:3]))
    assert speed_verdict(short, planted(tmp_path / "c")).reason is NotTested.TOO_FEW_STEPS
    assert speed_verdict(replace(one, history=History()), planted(tmp_path / "d")).outcome is Outcome.NOT_TESTED


@pytest.mark.parametrize("degrees", [1, 2, 3, 16, 63, 639])
def test_students_t_threshold_agrees_with_scipy(degrees: int) -> None:
    assert students_t_threshold(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-9)
    assert students_t_p_value(1.3, degrees) == pytest.approx(2 * stats.t.sf(1.3, degrees), rel=1e-9)


def test_equal_tokens_need_a_validation_of_both_runs(tmp_path: Path) -> None:
    ours, other = planted(tmp_path / "a", loss=2.9), planted(tmp_path / "b")
    further = [*ours.history.steps, replace(ours.history.steps[-1], step=121, tokens=123_904)]
    ours = replace(ours, history=replace(ours.history, steps=further), recipe=finished_after(121))
    other = replace(other, recipe=finished_after(120))
    found = claim_at_equal_tokens(ours, other, claims_on_runs(ours, other)[0])
    assert found and found.is_difference and (found.verdict.ours, found.verdict.theirs) == (2.9, 3.0)
    assert "At equal tokens, its validation loss was 2.9000 vs 3.0000" in baseline_paragraph(ours, as_other(other))
    ours, kept = with_windows(ours, -0.05, 0.1), with_windows(other, 0.0, 0.1)
    found = claim_at_equal_tokens(ours, kept, claims_on_runs(ours, kept)[0])
    assert found and found.verdict.outcome is Outcome.LOWER and isinstance(found.verdict.test, PairedLossTest)
    row = {row.name: row for row in verdict_rows(ours, kept)}["Validation Loss at Equal Tokens"]
    assert row.verdict == "lower" and row.test == describe_test(found.verdict, kept.id)
    earlier = [replace(look, step=40, tokens=40_960) for look in other.history.validations]  # stopped later
    other = replace(other, history=replace(other.history, validations=earlier))
    assert claim_at_equal_tokens(ours, other, claims_on_runs(ours, other)[0]) is None


def finished_after(steps: int) -> Recipe:
    return load_recipe("demo-modern", [f"run.max_steps={steps}"])


def as_other(run: Run) -> Baseline:
    return Baseline(run.id, run.recipe, run)
