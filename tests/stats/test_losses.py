"""One test of two losses, used by report and comparison alike."""

import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from regpt.fairness.loading import load_run
from regpt.fairness.models import align_on_shared_data
from regpt.recipe.settings import load_recipe
from regpt.stats.losses import ErrorBoundsTest, MeasuredLoss, error_bounds_test
from regpt.stats.outcome import NotTested, Outcome
from regpt.stats.paired import PairedLossTest
from regpt.stats.verdicts import Verdict, compare_losses, loss_verdict
from regpt.tracking.environment import DataInfo, Environment
from regpt.tracking.journal import History, StepRecord, ValidationRecord
from regpt.tracking.run import Run
from regpt.tracking.window_losses import write_window_losses

OPPOSITE = {Outcome.LOWER: Outcome.HIGHER, Outcome.HIGHER: Outcome.LOWER}


def measured(loss: float, error: float, data: str = "d", windows: int = 64) -> MeasuredLoss:
    return MeasuredLoss(loss, error, 0.0, data, 32, windows)


@pytest.mark.parametrize(
    ("ours", "theirs", "outcome", "reason"),
    [
        (measured(3.0, 0.02), measured(3.1, 0.02), Outcome.LOWER, None),
        (measured(3.1, 0.02), measured(3.0, 0.02), Outcome.HIGHER, None),
        (measured(3.0, 0.02), measured(3.07, 0.02), Outcome.NOT_TESTED, NotTested.UNKNOWN_CORRELATION),
        (measured(3.0, 0.02), measured(3.01, 0.08), Outcome.INDISTINGUISHABLE, None),
        (measured(3.0, 0.02), measured(3.0, 0.02), Outcome.INDISTINGUISHABLE, None),
        (measured(3.0, 0.176), measured(3.55, 0.171), Outcome.NOT_TESTED, NotTested.UNKNOWN_CORRELATION),
        (measured(3.0, 0.02), measured(3.1, 0.0), Outcome.NOT_TESTED, NotTested.NO_STANDARD_ERRORS),
        (measured(3.0, 0.02), measured(3.1, 0.02, "e"), Outcome.NOT_TESTED, NotTested.OTHER_DATA),
        (measured(3.0, 0.02, ""), measured(3.1, 0.02, ""), Outcome.NOT_TESTED, NotTested.OTHER_DATA),
        (measured(3.0, 0.02, windows=63), measured(3.1, 0.02), Outcome.NOT_TESTED, NotTested.OTHER_DATA),
        (measured(3.0, 0.02, windows=3), measured(9.1, 0.02, windows=3), Outcome.NOT_TESTED, NotTested.TOO_FEW_WINDOWS),
        (measured(math.nan, 0.02), measured(3.1, 0.02), Outcome.NOT_TESTED, NotTested.NOT_FINITE),
        (measured(3.0, math.inf), measured(3.1, 0.02), Outcome.NOT_TESTED, NotTested.NOT_FINITE),
        (None, measured(3.1, 0.02), Outcome.NOT_TESTED, NotTested.NOT_MEASURED),
    ],
)
def test_error_bounds_decide_only_what_any_correlation_allows(
    ours: MeasuredLoss | None, theirs: MeasuredLoss | None, outcome: Outcome, reason: NotTested | None
) -> None:
    verdict = compare_losses(ours, theirs)
    assert (verdict.outcome, verdict.reason) == (outcome, reason)


def mean_and_error(losses: NDArray[np.float64]) -> tuple[float, float]:
    return float(losses.mean()), float(losses.std(ddof=1)) / math.sqrt(len(losses))


@given(
    seed=st.integers(0, 10_000),
    windows=st.integers(4, 200),
    shift=st.floats(-2, 2),
    shared=st.floats(-3, 3),
    noise=st.floats(0.1, 3),
)
def test_error_bounds_never_contradict_the_paired_test_over_windows(
    seed: int, windows: int, shift: float, shared: float, noise: float
) -> None:
    """For positive, zero and negative correlation. The 2 % are for the approximation of Student's t."""
    random = np.random.default_rng(seed)
    common = random.standard_normal(windows)
    first = 4.0 + abs(shared) * common + noise * random.standard_normal(windows)
    second = 4.0 + shift + shared * common + random.standard_normal(windows)
    test, _ = error_bounds_test(mean_and_error(first), mean_and_error(second), windows)
    assert test is not None
    statistic = abs(float(stats.ttest_rel(first, second).statistic))
    critical = float(stats.t.ppf(0.975, windows - 1))
    if test.outcome.is_difference:
        assert statistic > 0.98 * critical
    if test.outcome is Outcome.INDISTINGUISHABLE:
        assert statistic < 1.02 * critical


@pytest.mark.parametrize("shared", [0.0, 3.0])
def test_equal_models_rarely_differ_significantly(shared: float) -> None:
    """2,000 pairs of equal models, with and without windows that are hard for both."""
    random = np.random.default_rng(1)
    found = 0
    for _ in range(2000):
        common = shared * random.standard_normal(16)
        one, two = (common + random.standard_normal(16) for _ in range(2))
        test, _ = error_bounds_test(mean_and_error(one), mean_and_error(two), 16)
        found += test is not None and test.outcome.is_difference
    assert found / 2000 <= 0.05


# Report and comparison

LossRecord = tuple[float, float, int, bool]  # (loss, standard error, windows, window losses kept)
LOSS_RECORDS = st.tuples(
    st.sampled_from([3.0, 3.0, 3.001, 3.03, 3.1, 5.0, math.nan]),
    st.sampled_from([0.0, 0.01, 0.02, 0.1, math.nan]),
    st.sampled_from([3, 6, 64, 64, 65]),
    st.booleans(),
)


def planted(path: Path, record: LossRecord, data: str) -> Run:
    """Make a run of one step whose only validation is `record`."""
    loss, error, windows, kept = record
    file = ""
    if kept and math.isfinite(loss):
        hard = np.random.default_rng(1).normal(0.0, 1.0, windows)
        own = hard + np.random.default_rng(int(1000 * loss)).normal(0.0, 0.05, windows)
        write_window_losses(path / "windows.npy", own - own.mean() + loss)
        file = "windows.npy"
    validation = ValidationRecord(
        step=1, tokens=8, loss=loss, windows=windows, seconds=1.0, standard_error=error, path=file
    )
    step = StepRecord(step=1, tokens=8, loss=3.0, gradient_norm=1.0, learning_rate=0.1, seconds=1.0, batch="")
    environment = Environment(data=DataInfo(digest=data))
    return Run(path, load_recipe("demo-modern"), environment, History(steps=[step], validations=[validation]))


def verdict_of_report(ours: Run, theirs: Run) -> Verdict:
    return loss_verdict(ours, theirs)


def verdict_of_comparison(ours: Run, theirs: Run) -> Verdict:
    first, second = align_on_shared_data([load_run(ours, "a"), load_run(theirs, "b")])
    return compare_losses(first.loss, second.loss)


@given(ours=LOSS_RECORDS, theirs=LOSS_RECORDS, other_data=st.sampled_from(["d", "d", "d", "e", ""]))
def test_report_and_comparison_give_the_same_outcome(ours: LossRecord, theirs: LossRecord, other_data: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        one, other = planted(Path(folder, "a"), ours, "d"), planted(Path(folder, "b"), theirs, other_data)
        report, comparison = verdict_of_report(one, other), verdict_of_comparison(one, other)
        assert (report.outcome, report.reason) == (comparison.outcome, comparison.reason)
        assert type(report.test) is type(comparison.test)
        swapped = verdict_of_report(other, one)
        assert swapped.outcome is OPPOSITE.get(report.outcome, report.outcome)


def test_missing_window_losses_fall_back_to_the_standard_errors(tmp_path: Path) -> None:
    one, other = (planted(tmp_path / name, (loss, 0.02, 64, True), "d") for name, loss in (("a", 3.0), ("b", 3.05)))
    assert isinstance(loss_verdict(one, other).test, PairedLossTest)
    (tmp_path / "b" / "windows.npy").unlink()
    assert isinstance(loss_verdict(one, other).test, ErrorBoundsTest)
    unvalidated = replace(other, history=History(steps=other.history.steps))
    assert loss_verdict(one, unvalidated).reason is NotTested.NOT_MEASURED
