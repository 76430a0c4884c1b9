"""Warnings: implausible records, small disks, repeated data, a warm-up as long as the run, long evaluations."""

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from regpt.base.cards import find_card
from regpt.plan.run_time import Rates, RunTime, time_on_cpu
from regpt.plan.sizes import disk_needed
from regpt.plan.warning_wording import warning_text
from regpt.plan.warnings import (
    DiskTooSmall,
    ImplausibleRecord,
    LongEvaluation,
    ManyEpochs,
    PlanWarning,
    RecordProblem,
    WarmupTooLong,
    find_implausible_record,
    find_warnings,
    parse_hardware,
)
from regpt.plan.workload import count_work
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import load_recipe, override

ONE_WINDOW = ["data.micro_batch=1", "data.total_batch_tokens=1024"]  # does not divide among four cards


Usage = namedtuple("Usage", "total used free")


def warnings_of(kind: type[PlanWarning], *settings: str) -> list[PlanWarning]:
    found = find_warnings(load_recipe("gpt2-modern", list(settings)), Path("runs"))
    return [warning for warning in found if isinstance(warning, kind)]


def test_record_above_peak_is_impossible() -> None:
    record = find_implausible_record(load_recipe("gpt2-modern"))
    assert record is not None and record.problem is RecordProblem.ABOVE_PEAK
    assert record.share_of_peak == pytest.approx(1.03, abs=0.005)
    assert record.tokens_per_second == pytest.approx(253_000, rel=0.005)
    assert "103 %" in warning_text(record) and "253,000" in warning_text(record)


@pytest.mark.parametrize("settings", [[], ONE_WINDOW])
def test_record_within_the_range_gives_no_warning(settings: list[str]) -> None:
    assert find_implausible_record(load_recipe("gpt2-classic", settings)) is None


def test_record_above_the_range_is_implausible() -> None:
    record = find_implausible_record(load_recipe("gpt2-modern", ["published.hours=26"]))
    assert record is not None and record.problem is RecordProblem.ABOVE_RANGE
    assert record.tokens_per_second > record.optimistic_tokens_per_second
    assert find_implausible_record(load_recipe("gpt2-modern", ["published.hours=45"])) is None


@pytest.mark.parametrize(
    ("hardware", "found"),
    [
        ("1 x RTX 5090, local machine", (1, "RTX 5090")),
        ("4 x RTX 3090, DDP over NCCL", (4, "RTX 3090")),
        ("8 × H100", (8, "H100")),
        ("a laptop", None),
        ("2 x unheard-of 9", None),
        ("", None),
    ],
)
def test_hardware_of_a_record_is_parsed(hardware: str, found: tuple[int, str] | None) -> None:
    cards = parse_hardware(hardware)
    assert (cards and (cards[0], cards[1].name)) == found


def test_disk_smaller_than_the_checkpoints_gives_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = disk_needed(load_recipe("gpt2-modern"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(needed, 1, needed - 1))
    warning = warnings_of(DiskTooSmall)[0]
    assert warning == DiskTooSmall(Path("runs"), free=needed - 1, needed=needed)
    assert "runs" in warning_text(warning) and "checkpoint.keep_last" in warning_text(warning)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(needed, 0, needed))
    assert warnings_of(DiskTooSmall) == []


def test_data_repeated_more_than_four_times_gives_a_warning() -> None:
    assert warnings_of(ManyEpochs) == []
    (warning,) = warnings_of(ManyEpochs, "run.max_steps=80000")
    assert isinstance(warning, ManyEpochs) and warning.epochs == pytest.approx(80_000 * 524_288 / 9.854e9)
    assert "4.3" in warning_text(warning)


def test_warmup_as_long_as_the_run_gives_a_warning() -> None:
    (warning,) = warnings_of(WarmupTooLong, "run.max_steps=100")
    assert warning == WarmupTooLong(load_recipe("gpt2-modern").optimizer.warmup_steps, 100)
    assert "optimizer.warmup_steps" in warning_text(warning)


def test_record_is_doubted_only_where_the_plan_is_for_its_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 10**12))
    recipe = load_recipe("gpt2-modern")  # recorded on an RTX 5090
    own, other = find_card("RTX 5090"), find_card("H100")
    assert [type(warning) for warning in find_warnings(recipe, Path("runs"), [other, own])] == [ImplausibleRecord]
    assert list(find_warnings(recipe, Path("runs"), [other])) == []
    assert list(find_warnings(recipe, Path("runs"))) == []


def time_of(recipe: Recipe) -> RunTime:
    rates = Rates(block=3e-5, loss=3e-4, micro_batch=0.0, optimizer=0.0, block_forward=1e-5, loss_forward=1.5e-4)
    return time_on_cpu(recipe, count_work(recipe), replace(rates, sampling_round=0.02), 3.0)


def long_evaluations(recipe: Recipe) -> list[PlanWarning]:
    found = find_warnings(recipe, Path("runs"), time=time_of(recipe))
    return [warning for warning in found if isinstance(warning, LongEvaluation)]


@pytest.mark.parametrize(
    ("settings", "remedies"),
    [
        (
            ["evaluation.hellaswag_items=0", "evaluation.hellaswag_every=20"],
            {"evaluation.hellaswag_every": 180, "evaluation.hellaswag_items": 100},
        ),
        (["evaluation.hellaswag_items=800"], {"evaluation.hellaswag_items": 100}),
        (
            ["run.max_steps=600", "evaluation.hellaswag_items=100", "evaluation.hellaswag_every=9"],
            {"evaluation.hellaswag_every": 75},
        ),
        (["run.max_steps=40", "evaluation.hellaswag_items=0"], {"evaluation.hellaswag_every": 0}),
        (["run.max_steps=600", "evaluation.validation_every=5"], {"evaluation.validation_every": 86}),
        (
            ["evaluation.validation_every=5", "evaluation.validation_batches=16"],
            {"evaluation.validation_every": 0, "evaluation.validation_batches": 4},
        ),
        (["evaluation.validation_every=0", "evaluation.validation_batches=40"], {"evaluation.validation_batches": 4}),
        (["evaluation.sample_every=1", "evaluation.sample_tokens=99"], {"evaluation.sample_every": 0}),
    ],
)
def test_long_evaluation_gets_settings_that_make_it_short(settings: list[str], remedies: dict[str, int]) -> None:
    recipe = load_recipe("demo-modern", ["optimizer.warmup_steps=3", "data.path=nowhere", *settings])
    (warning,) = long_evaluations(recipe)
    assert isinstance(warning, LongEvaluation) and warning.share == time_of(recipe).evaluation_share > 0.25
    assert remedies.items() <= dict(warning.remedy).items()
    remedied = override(recipe, [f"{name}={value}" for name, value in warning.remedy])
    assert time_of(remedied).evaluation_share < 0.25 and long_evaluations(remedied) == []
    for name, value in warning.remedy:
        assert f"{name}={value}" in warning_text(warning)


def test_short_evaluation_gives_no_warning() -> None:
    recipe = load_recipe("demo-modern", ["data.path=nowhere"])
    assert 0.1 < time_of(recipe).evaluation_share < 0.25 and long_evaluations(recipe) == []
