"""A report puts baselines next to the loss, and says how validation was chosen and how it differs from training."""

from dataclasses import replace
from pathlib import Path

import pytest

from regpt.data.token_statistics import SideStatistics, TokenStatistics
from regpt.data.validation_split import SplitRule, SplitWarning, ValidationSplit, describe_warning
from regpt.inspection.duplicate_record import SplitDuplicates
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


DUPLICATES = SplitDuplicates(
    validation_documents=50,
    validation_tokens=10_000,
    exact_documents=2,
    exact_tokens=30,
    near_documents=3,
    near_tokens=10,
    overlapping_documents=0,
    overlapping_tokens=0,
    repeated_documents=0,
    repeated_tokens=0,
    within_documents=0,
    within_tokens=0,
    shared_shingles=0.01,
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


def with_duplicates(run: Run, found: SplitDuplicates | None) -> dict[str, str]:
    data = replace(run.environment.data, split=None, duplicates=found)
    return dict(split_lines(replace(run, environment=replace(run.environment, data=data))))


def test_duplicates_of_the_split_have_a_row_if_they_were_searched(run: Run) -> None:
    text = with_duplicates(run, DUPLICATES)["Duplicates"]
    assert "training: 2;" in text and "near-duplicates: 3;" in text and "0.4 % of the validation tokens" in text
    assert "Duplicates" not in with_duplicates(run, None)
    none = with_duplicates(run, replace(DUPLICATES, exact_documents=0, near_documents=0))
    assert "near-duplicate" in none["Duplicates"] and "%" not in none["Duplicates"]


@pytest.mark.parametrize(("kind", "most"), [("exact", 90), ("near", 70), ("repeated", 60)])
def test_duplicates_of_more_than_a_hundredth_are_a_warning(run: Run, kind: str, most: int) -> None:
    """`most` tokens of a kind, with those of the others, are exactly a hundredth."""
    assert "Warning" not in with_duplicates(run, replace(DUPLICATES, **{f"{kind}_tokens": most}))
    assert "1.01 %" in with_duplicates(run, replace(DUPLICATES, **{f"{kind}_tokens": most + 1}))["Warning"]


def test_overlaps_are_a_warning_only_in_half_of_validation(run: Run) -> None:
    assert "Warning" not in with_duplicates(run, replace(DUPLICATES, overlapping_tokens=5_000))
    assert "60 %" in with_duplicates(run, replace(DUPLICATES, overlapping_tokens=6_000))["Warning"]


def test_runs_without_statistics_have_no_such_lines(tmp_path: Path) -> None:
    old = open_run(TRIAL)
    assert list(baselines(old)) == list(split_lines(old)) == []


def test_report_has_baselines_and_split(run: Run, tmp_path: Path) -> None:
    text = write_report(replace(run, path=tmp_path), []).read_text(encoding="utf-8")
    assert text.index("7.1234") < text.index("## Data Configuration") < text.index("7 whole documents")
