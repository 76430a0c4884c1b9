"""The text of `regpt bench`, compared with golden files, and the figures computed from fixed times."""

from dataclasses import replace
from pathlib import Path

import pytest

from regpt.base.cards import find_card
from regpt.bench.prediction import prediction_of
from regpt.bench.result import (
    BenchResult,
    Checkpoint,
    Machine,
    MemoryUse,
    Part,
    Parts,
    Prediction,
    StepTimes,
    TimedStep,
)
from regpt.bench.wording import bench_lines
from regpt.plan.published_speeds import published_speeds
from regpt.plan.run_time import Range
from regpt.plan.summary import plan_for_cards
from regpt.plan.workload import count_work
from regpt.recipe.settings import load_recipe
from tests.helpers.golden import assert_golden

WARM_UP = (TimedStep(60.0, 2.0), TimedStep(1.0, 0.5))


@pytest.fixture
def on_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BenchResult:
    """A measurement on an H100 with whole steps and a smaller micro-batch, in a folder without data."""
    monkeypatch.chdir(tmp_path)
    recipe = replace(load_recipe("gpt2-modern", ["data.micro_batch=16"]), name="example")
    return BenchResult(
        recipe=recipe,
        configured_micro_batch=32,
        machine=Machine("NVIDIA H100 80GB HBM3", "cuda", "bfloat16", True, "2.13.0", 989.4e12, "published for H100"),
        work=count_work(recipe),
        steps=StepTimes(524_288, 32, 32, WARM_UP, tuple(TimedStep(1.1 + n / 100, 0.05) for n in range(21))),
        parts=Parts(Part(16, 0.06), Part(184, 0.08), Part(4, 0.0124), Checkpoint(1_480_000_000, 0.35, 2.1)),
        memory=MemoryUse(8_100_000_000, 0, 9_700_000_000),
        other_share=0.01,
        prediction=prediction_of(plan_for_cards(recipe, "H100", 1, None, Path("runs"))),
        published=published_speeds(find_card("H100"), recipe.model),
    )


@pytest.fixture
def on_cpu(on_card: BenchResult) -> BenchResult:
    """A measurement on a busy CPU with shortened steps and without a checkpoint."""
    return replace(
        on_card,
        configured_micro_batch=16,
        machine=Machine("a CPU, 2 threads", "cpu", "float32", False, "2.13.0", 0.0, "5 measurements differ by 25 %"),
        steps=StepTimes(524_288, 32, 2, WARM_UP, (TimedStep(20.0, 1.0), TimedStep(22.0, 1.0), TimedStep(30.0, 1.0))),
        parts=replace(on_card.parts, checkpoint=None),
        memory=MemoryUse(6_000_000_000, 300_000_000, 0),
        other_share=0.25,
        prediction=Prediction(Range(2000.0, 1000.0), 5.7e9, Range(4e6, 8e6)),
        published=(),
    )


def test_measurement_on_a_card_reads_like_the_golden_file(on_card: BenchResult) -> None:
    assert_golden("bench/card.txt", "\n".join(bench_lines(on_card)) + "\n")


def test_measurement_on_a_busy_cpu_reads_like_the_golden_file(on_cpu: BenchResult) -> None:
    assert_golden("bench/busy-cpu.txt", "\n".join(bench_lines(on_cpu)) + "\n")


def test_measurement_without_prediction_reads_like_the_golden_file(on_cpu: BenchResult) -> None:
    result = replace(on_cpu, prediction=None, other_share=-1.0)
    assert_golden("bench/no-prediction.txt", "\n".join(bench_lines(result)) + "\n")


def test_speed_is_the_median_step_with_its_quartiles(on_card: BenchResult) -> None:
    assert on_card.steps.seconds == pytest.approx((1.2, 1.25, 1.3))
    assert on_card.steps.tokens_per_second == pytest.approx((524_288 / 1.3, 524_288 / 1.25, 524_288 / 1.2))
    flops = on_card.recipe.model.flops_per_token
    assert on_card.share_of_peak == pytest.approx(524_288 / 1.25 * flops / 989.4e12)
    assert on_card.compile_seconds == pytest.approx(60.5)


def test_whole_step_is_computed_from_shortened_ones(on_cpu: BenchResult) -> None:
    assert on_cpu.steps.seconds.median == pytest.approx(16 * 22 + 1)
    assert on_cpu.compile_seconds == 0 and on_cpu.share_of_peak == 0


def test_ratios_are_measured_divided_by_predicted(on_cpu: BenchResult) -> None:
    assert on_cpu.speed_ratio == pytest.approx(524_288 / 353 / 1500)
    assert on_cpu.memory_ratio == pytest.approx(1.0)  # without the program


def test_time_of_the_run_multiplies_parts_by_their_number(on_card: BenchResult) -> None:
    work, time = on_card.work, on_card.run_time
    assert time.training.middle == pytest.approx(38_146 * 1.25)
    assert time.validation.middle == pytest.approx(154 * 640 / 16 * 0.06)
    assert time.tasks.middle == pytest.approx(154 * 10_042 / 184 * 0.08)
    assert time.samples.middle == pytest.approx(work.sampling_rounds * 0.0124)
    assert time.checkpoints.middle == pytest.approx(8 * 0.35 + 1 * 2.1)
    assert time.start.middle == pytest.approx(60.5)
