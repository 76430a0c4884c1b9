"""The time of a run is the sum of its parts, each its amount of work times the time of one unit."""

from dataclasses import replace

import pytest

from regpt.base.cards import find_card
from regpt.plan.estimate import Estimate, Hardware, estimate
from regpt.plan.run_time import Range, Rates, RunTime, time_on_cards, time_on_cpu
from regpt.plan.workload import count_work
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import load_recipe

STEP = ["run.max_steps=60", "optimizer.warmup_steps=3", "data.path=nowhere"]
SMALL = [*STEP, "evaluation.hellaswag_items=50", "evaluation.hellaswag_every=60", "checkpoint.every=20"]
H100 = find_card("H100")


def small(*settings: str) -> Recipe:
    """Return 60 steps of 1,024 tokens in 4 layers, 64 validation windows of 256 tokens, 50 items."""
    return load_recipe("demo-modern", [*SMALL, *settings])


def test_time_on_a_cpu_is_computed_by_hand() -> None:
    recipe = small()
    rates = Rates(
        block=0.0, loss=0.0, micro_batch=0.5, optimizer=0.0, block_forward=1e-5, loss_forward=2e-4, sampling_round=0.1
    )
    time = time_on_cpu(recipe, count_work(recipe), rates, start_seconds=4.0)
    validation = 2 * 64 * 256 * (4 * 1e-5 + 2e-4)  # before the first step and after the last
    tasks = 2 * 50 * (178 * 4 * 1e-5 + 127 * 2e-4)
    samples = 1 * 24 * 0.1
    saved = 3 * 12 * recipe.model.parameters
    assert time.training == pytest.approx((60 * 0.5 / 1.25, 60 * 0.5 * 1.25))
    assert time.validation == pytest.approx((validation / 1.25, validation * 1.25))
    assert time.tasks == pytest.approx((tasks / 1.25, tasks * 1.25))
    assert time.samples == pytest.approx((samples / 1.25, samples * 1.25))
    assert time.checkpoints == pytest.approx((saved / 1e9, saved / 0.2e9))
    expected = 60 * 0.5 + validation + tasks + samples + 4.0
    assert time.total == pytest.approx((expected / 1.25 + saved / 1e9, expected * 1.25 + saved / 0.2e9))


def test_time_on_cards_is_computed_by_hand() -> None:
    recipe = small()
    model = recipe.model
    time = time_on_cards(recipe, count_work(recipe), H100, 2, Range(1.0, 2.0), Range(1e-6, 3e-6))
    assert time.training == (60.0, 120.0)
    assert time.validation == pytest.approx((2 * 64 * 256 / 3 / 2 * 1e-6, 2 * 64 * 256 / 3 / 2 * 3e-6))
    head = 6 * 50_304 * 128 / model.flops_per_token
    tasks = 2 * 50 * ((1 - head) * 178 + head * 127) / 3 / 2
    assert time.tasks == pytest.approx((tasks * 1e-6, tasks * 3e-6))
    weights = 4 * model.parameters / 3350e9
    assert time.samples == pytest.approx((24 * (0.01 + weights), 24 * (0.05 + weights)))
    one = 12 * model.parameters
    assert time.checkpoints == pytest.approx((one / 1e9 + 3 * one / 20e9, one / 0.2e9 + 3 * one / 4e9))


def test_checkpoints_that_training_waits_for_are_all_counted() -> None:
    recipe = small("checkpoint.background=false")
    time = time_on_cards(recipe, count_work(recipe), H100, 1, Range(1.0, 2.0), Range(1e-6, 3e-6))
    one = 12 * recipe.model.parameters
    assert time.checkpoints == pytest.approx((3 * (one / 1e9 + one / 20e9), 3 * (one / 0.2e9 + one / 4e9)))


@pytest.mark.parametrize(
    ("less", "part"),
    [("evaluation.hellaswag_every=0", "tasks"), ("evaluation.sample_count=0", "samples")],
)
def test_evaluation_raises_hours_energy_and_money_by_its_cost(less: str, part: str) -> None:
    with_it, without = on_eight_h100([]), on_eight_h100([less])
    added = with_it.time.parts[part]
    assert added.optimistic > 0 and without.time.parts[part] == (0.0, 0.0)
    assert added_by(with_it.hours, without.hours) == pytest.approx([seconds / 3600 for seconds in added])
    assert with_it.usd is not None and without.usd is not None
    assert added_by(with_it.usd, without.usd) == pytest.approx([8 * 2.5 * seconds / 3600 for seconds in added])
    energy = [8 * 0.7 * share * seconds / 3600 for share, seconds in zip((0.8, 1.0), added, strict=True)]
    assert added_by(with_it.kilowatt_hours, without.kilowatt_hours) == pytest.approx(energy)


def added_by(more: Range, less: Range) -> list[float]:
    return [one - other for one, other in zip(more, less, strict=True)]


def on_eight_h100(settings: list[str]) -> Estimate:
    found = estimate(load_recipe("gpt2-modern", settings), 8, Hardware(H100, usd_per_hour=2.5), 32)
    assert found is not None
    return found


def test_shares_are_those_of_the_middle_and_add_up_to_one() -> None:
    time = RunTime(training=Range(5.0, 7.0), validation=Range(1.0, 1.0), tasks=Range(0.5, 1.5), samples=Range(0.0, 4.0))
    assert time.total == (6.5, 13.5)
    assert time.share("training") == pytest.approx(0.6) and time.share("validation", "tasks") == pytest.approx(0.2)
    assert time.evaluation_share == pytest.approx(0.4)
    assert sum(time.share(part) for part in time.parts) == pytest.approx(1.0)
    assert replace(time, start=Range(10.0, 10.0)).share("training") == pytest.approx(0.3)
