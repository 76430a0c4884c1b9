"""What `regpt plan` predicts for a recipe on the device that was measured."""

from pathlib import Path

from regpt.bench.result import Prediction
from regpt.machine.device import Device, free_memory, known_card
from regpt.machine.limits import memory_limit
from regpt.plan.measure_cpu import measured_rates
from regpt.plan.summary import CardPlan, CpuPlan, Plan, plan_for_cards, plan_for_this_machine
from regpt.recipe.recipe import Recipe


def predict(recipe: Recipe, device: Device, runs: Path) -> Prediction | None:
    """Return the prediction of `regpt plan`, on a CPU measured in about two seconds; None for an unknown card."""
    card = known_card(device.torch_device)
    if card is not None:
        return prediction_of(plan_for_cards(recipe, card.name, 1, None, runs))
    if device.torch_device.type != "cpu":
        return None
    bfloat16 = device.precision_name == "bfloat16"
    rates, free = measured_rates(recipe, device), free_memory(device.torch_device)
    return prediction_of(plan_for_this_machine(recipe, device.name, rates, free, bfloat16, runs, memory_limit()))


def prediction_of(plan: Plan) -> Prediction | None:
    """Return the speed, memory and time of a plan; None if it has no speed."""
    target = plan.target
    if isinstance(target, CpuPlan):
        return Prediction(target.tokens_per_second, target.memory.total, target.time.total)
    if isinstance(target, CardPlan) and target.estimate is not None and target.estimate.is_speed_known:
        found = target.estimate
        return Prediction(found.tokens_per_second, found.memory.total, found.time.total)
    return None
