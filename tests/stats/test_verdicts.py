"""A word of two runs is said only where their figures carry it: planted journals, equal, unequal and not comparable."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from regpt.base.settings import load_recipe
from regpt.report.scores import Baseline
from regpt.report.summary import baseline_paragraph, summary
from regpt.stats.paired import student
from regpt.stats.verdicts import ALIKE, UNTESTED, Verdict, speed_verdict, unpaired_test, verdicts
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
        accuracy={"by_token": accuracy.value}, standard_error={"by_token": accuracy.error}, seconds=1.0, count=1000,
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


@pytest.mark.parametrize(("apart", "word"), [(-0.02, "lower"), (0.02, "higher"), (0.001, ALIKE)])
def test_losses_are_told_apart_window_by_window_where_their_own_errors_would_not(
    tmp_path: Path, apart: float, word: str
) -> None:
    one = with_windows(planted(tmp_path / "a"), apart, 0.1)
    two = with_windows(planted(tmp_path / "b"), 0.0, 0.1)
    claim = claimed(one, two)["Validation Loss"]
    assert claim.word == word and "over the same 640 windows" in claim.because
    (two.path / "windows.npy").unlink()  # as of a run that did not keep them
    assert claimed(one, two)["Validation Loss"].word == ALIKE


def claimed(run: Run, other: Run) -> dict[str, Verdict]:
    return {claim.what: claim for claim in verdicts(run, other)}


def test_runs_that_are_equal_cannot_be_told_apart(tmp_path: Path) -> None:
    found = claimed(planted(tmp_path / "a"), planted(tmp_path / "b"))
    assert {claim.word for claim in found.values()} == {ALIKE}


def test_a_clear_difference_is_called_by_its_name_and_the_other_way_round_by_the_other(tmp_path: Path) -> None:
    better = planted(tmp_path / "a", loss=2.9, right=360, seconds=0.8)
    worse = planted(tmp_path / "b", loss=3.0, right=300, seconds=1.0)
    assert [claim.word for claim in verdicts(better, worse)] == ["higher", "lower", "faster"]
    assert [claim.word for claim in verdicts(worse, better)] == ["lower", "higher", "slower"]
    text = "\n\n".join(summary(better, [Baseline("b", worse.recipe, worse)]))
    assert "validation loss is lower, 2.9000 against 3.0000 (0.1000 apart, 0.0278 needed)" in text
    assert "HellaSwag accuracy is higher, 36.0 % against 30.0 % (McNemar's p = 1.7e-18)" in text
    assert (
        "steps were faster, 1,231 against 985 tokens/s (group by group × 1.25 over 16 groups of neighbouring steps"
        in text
    )


def test_a_difference_within_the_errors_is_not_called_one(tmp_path: Path) -> None:
    """The loss is 0.02 apart, but its two errors of 0.01 allow 0.028; of the items only 4 are answered otherwise."""
    found = claimed(planted(tmp_path / "a", loss=2.98, right=304, seconds=0.99), planted(tmp_path / "b"))
    assert {claim.word for claim in found.values()} == {ALIKE}
    text = "\n\n".join(summary(planted(tmp_path / "c", loss=2.98, right=304), []))
    assert not {"better", "faster", "lower", "higher"} & set(text.replace("(", " ").split())


@pytest.mark.parametrize("changed", [{"windows": 320}, {"data": "b" * 64}, {"error": 0.0}])
def test_losses_that_do_not_compare_are_not_compared(tmp_path: Path, changed: dict[str, Any]) -> None:
    one, two = planted(tmp_path / "a", loss=1.0), planted(tmp_path / "b", **changed)
    claim = claimed(one, two)["Validation Loss"]
    assert claim.word == UNTESTED and claim.because
    text = "\n\n".join(summary(one, [Baseline("b", two.recipe, two)]))
    assert "lower" not in text


def test_answers_to_other_items_are_not_compared(tmp_path: Path) -> None:
    claim = claimed(planted(tmp_path / "a", right=900), planted(tmp_path / "b", asked="others"))["HellaSwag Accuracy"]
    assert claim.word == UNTESTED and "other items" in claim.because


def test_speeds_on_other_devices_or_of_few_steps_are_not_compared(tmp_path: Path) -> None:
    one, other = planted(tmp_path / "a", seconds=0.1), planted(tmp_path / "b", device="another card")
    assert speed_verdict(one, other).word == UNTESTED
    short = replace(one, history=replace(one.history, steps=one.history.steps[:3]))
    assert speed_verdict(short, planted(tmp_path / "c")).word == UNTESTED
    assert speed_verdict(replace(one, history=History()), planted(tmp_path / "d")).word == UNTESTED


@pytest.mark.parametrize("degrees", [3, 7, 63, 639])
def test_few_windows_ask_for_more(degrees: int) -> None:
    assert student(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=0.01)


@pytest.mark.parametrize("shared", [0.0, 3.0])
def test_equal_models_are_told_apart_no_more_often_than_the_level_says(shared: float) -> None:
    """2,000 pairs of equal models; where windows share their difficulty, as they do, almost never."""
    random = np.random.default_rng(1)
    said = 0
    for _ in range(2000):
        windows = shared * random.standard_normal(16)
        one, two = (windows + random.standard_normal(16) for _ in range(2))
        pairs = [(float(losses.mean()), float(losses.std(ddof=1) / 4)) for losses in (one, two)]
        said += unpaired_test(pairs[0], pairs[1], 16, "lower", "higher")[0] != ALIKE
    assert said / 2000 <= 0.06
    assert said / 2000 < 0.001 or not shared


def test_equal_tokens_are_those_after_which_both_were_looked_at(tmp_path: Path) -> None:
    ours, other = planted(tmp_path / "a", loss=2.9), planted(tmp_path / "b")
    further = [*ours.history.steps, replace(ours.history.steps[-1], step=121, tokens=123_904)]
    ours = replace(ours, history=replace(ours.history, steps=further))
    assert "After as many tokens its validation loss stood at 2.9000 against 3.0000" in baseline_paragraph(
        ours, as_other(other)
    )
    ours, kept = with_windows(ours, -0.05, 0.1), with_windows(other, 0.0, 0.1)
    said = baseline_paragraph(ours, as_other(kept))
    assert re.search(r"After as many tokens its validation loss stood at [\d.]+ against [\d.]+, lower \(-0\.0", said)
    earlier = [replace(look, step=40, tokens=40_960) for look in other.history.validations]  # stopped later
    other = replace(other, history=replace(other.history, validations=earlier))
    assert "as many tokens" not in baseline_paragraph(ours, as_other(other))


def as_other(run: Run) -> Baseline:
    return Baseline(run.id, run.recipe, run)
