"""A report puts baselines next to the loss, and says how validation was chosen and how it differs from training."""

from dataclasses import replace
from pathlib import Path

import pytest

from regpt.data.token_statistics import SideStatistics, TokenStatistics
from regpt.data.validation_split import SplitRule, SplitWarning, ValidationSplit, describe_warning
from regpt.reporting.dataset import baselines, difference_text, split_lines
from regpt.reporting.page import write_report
from regpt.tracking.run import Run, open_run

TRIAL = Path(__file__).parent.parent / "fixtures" / "runs" / "trial-050226"
SIDE = SideStatistics(
    tokens=1_000,
    documents=10,
    mean_document=100.0,
    median_document=90.0,
    sampled_tokens=1_000,
    bytes_per_token=4.0,
    entropy=6.25,
    conditional_entropy=3.0,
)
STATISTICS = TokenStatistics(
    train=replace(SIDE, documents=90, entropy=6.5),
    validation=SIDE,
    unigram_cross_entropy=7.1234,
    bigram_cross_entropy=5.4321,
    divergence=0.03,
    divergence_within_training=0.02,
)
SPLIT = ValidationSplit(
    rule=SplitRule.DOCUMENTS, documents=7, tokens_per_document=500, held_out_tokens=4_000, text_tokens=1_000_000
)


@pytest.fixture
def run() -> Run:
    run = open_run(TRIAL)
    data = replace(run.environment.data, split=SPLIT, statistics=STATISTICS)
    return replace(run, environment=replace(run.environment, data=data))


def test_baselines_are_cross_entropies_of_validation(run: Run) -> None:
    (text,) = baselines(run)
    assert "7.1234" in text and "5.4321" in text


def test_split_lines_have_the_rule_its_warnings_and_both_sides(run: Run) -> None:
    lines = dict(split_lines(run))
    assert "7 whole documents" in lines["Validation"]
    assert lines["Warning"] == describe_warning(SPLIT, SplitWarning.FEW_DOCUMENTS)
    assert "10 in validation" in lines["Documents"] and "90 in training" in lines["Documents"]
    assert "6.250" in lines["Token statistics"] and "0.0300" in lines["Token statistics"]


def test_validation_far_from_training_is_named_with_its_factor() -> None:
    assert "times as far" not in difference_text(STATISTICS)
    assert "3.5 times as far" in difference_text(replace(STATISTICS, divergence=0.07))


def test_runs_without_statistics_have_no_such_lines(tmp_path: Path) -> None:
    old = open_run(TRIAL)
    assert list(baselines(old)) == list(split_lines(old)) == []


def test_report_has_baselines_and_split(run: Run, tmp_path: Path) -> None:
    text = write_report(replace(run, path=tmp_path), []).read_text(encoding="utf-8")
    assert text.index("7.1234") < text.index("## Data Configuration") < text.index("7 whole documents")
