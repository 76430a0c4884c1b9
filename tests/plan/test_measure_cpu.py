"""The predicted step time is the sum of its measured parts; benchmarks/plan.py measures the prediction error."""

from dataclasses import replace

import pytest

from regpt.machine.device import open_device
from regpt.plan.measure_cpu import measured_rates
from regpt.plan.run_time import Rates
from regpt.recipe.run_settings import RunRecipe
from regpt.recipe.settings import load_recipe


def test_step_time_is_the_sum_of_its_parts() -> None:
    recipe = load_recipe("demo-modern", ["data.micro_batch=2"])
    rates = Rates(block=1e-6, loss=1e-4, micro_batch=0.5, optimizer=1e-9)
    expected = 1024 * (4 * 1e-6 + 1e-4) + 2 * 0.5 + recipe.model.parameters * 1e-9
    assert rates.step_seconds(recipe) == pytest.approx(expected)
    assert rates.step_seconds(recipe, ranks=2) == pytest.approx(
        512 * (4 * 1e-6 + 1e-4) + 0.5 + recipe.model.parameters * 1e-9
    )
    recomputing = replace(recipe, run=replace(recipe.run, activation_checkpointing=True))
    assert rates.step_seconds(recomputing) == pytest.approx(expected + 1024 * 4 * 1e-6 / 3)


@pytest.mark.parametrize(("name", "kind"), [("demo-classic", "adamw"), ("demo-modern", "muon")])
def test_every_part_takes_a_measurable_time(name: str, kind: str) -> None:
    recipe = load_recipe(name, ["run.precision=float32", f"optimizer.kind={kind}"])
    rates = measured_rates(recipe, open_device(recipe.run), seconds=0.2)
    taken = [part for part, seconds in vars(rates).items() if seconds > 0]
    assert taken == [part for part in vars(rates) if kind == "muon" or part != "orthogonalization"]


def test_block_smaller_than_a_loss_chunk_is_measured() -> None:
    tiny = load_recipe("demo-modern", ["model.block_size=4", "data.micro_batch=1", "data.total_batch_tokens=4"])
    assert measured_rates(tiny, open_device(RunRecipe(device="cpu")), seconds=0.1).step_seconds(tiny) > 0
