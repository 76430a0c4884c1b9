"""`regpt plan`: memory, micro-batch, cost and the text of the command."""

from pathlib import Path

import pytest

from regpt.base.cards import CARDS, find_card
from regpt.base.errors import UserError
from regpt.base.format import gigabytes
from regpt.cli.main import main
from regpt.plan.estimate import Hardware, estimate
from regpt.plan.memory import USABLE_SHARE, estimate_memory
from regpt.plan.run_time import Rates
from regpt.plan.summary import CardPlan, CpuPlan, MicroBatchFit, plan_for_cards, plan_for_this_machine
from regpt.plan.wording import plan_lines
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import load_recipe

LARGE = ["model.n_layer=48", "model.n_embd=4096", "model.n_head=32"]
SEVEN_B = ["model.n_layer=32", "model.n_head=32", "model.n_embd=4096", "model.mlp_hidden=11008"]
RUNS = Path("runs")
RATES = Rates(block=1e-4, loss=1e-3, micro_batch=0.1, optimizer=1e-8)


def rates_of_step(recipe: Recipe, seconds: float) -> Rates:
    """Return rates with which a step of one micro-batch takes `seconds`."""
    return Rates(block=0.0, loss=0.0, micro_batch=seconds / recipe.accumulation_steps(), optimizer=0.0)


def on_card(recipe: Recipe, card: str, ranks: int = 1, price: float | None = None) -> CardPlan:
    target = plan_for_cards(recipe, card, ranks, price, RUNS).target
    assert isinstance(target, CardPlan)
    return target


def text(recipe: Recipe, card: str, ranks: int = 1, price: float | None = None) -> str:
    return "\n".join(plan_lines(plan_for_cards(recipe, card, ranks, price, RUNS)))


def test_memory_parts_add_up_and_every_part_is_printed() -> None:
    recipe = load_recipe("gpt2-modern")
    plan = on_card(recipe, "RTX 5090")
    assert plan.estimate is not None and plan.memory_limit == pytest.approx(28.8e9)
    memory = plan.estimate.memory
    assert sum(memory.parts.values()) == pytest.approx(memory.total) and memory.total <= plan.memory_limit
    lines = text(recipe, "RTX 5090")
    for size in (*memory.parts.values(), memory.total):
        assert gigabytes(size) in lines
    assert "28.8 GB" in lines


def test_micro_batch_that_fits_is_used_and_the_largest_is_named() -> None:
    plan = on_card(load_recipe("gpt2-modern"), "RTX 5090")
    batch = plan.micro_batch
    assert batch is not None and plan.estimate is not None
    assert (batch.configured, batch.used, batch.fit) == (32, 32, MicroBatchFit.FITS)
    assert (batch.largest, batch.largest_dividing) == (69, 64)
    assert plan.estimate.layout.accumulation == 16


def test_micro_batch_that_does_not_fit_is_replaced() -> None:
    batch = on_card(load_recipe("gpt2-modern"), "RTX 3080").micro_batch
    assert batch is not None
    assert (batch.configured, batch.used, batch.fit) == (32, 16, MicroBatchFit.DOES_NOT_FIT)


def test_micro_batch_that_does_not_divide_is_replaced() -> None:
    batch = on_card(load_recipe("gpt2-modern"), "H100", ranks=64).micro_batch
    assert batch is not None and batch.fit is MicroBatchFit.DOES_NOT_DIVIDE
    assert 512 % (64 * batch.used) == 0


def test_model_that_does_not_fit_gets_no_estimate() -> None:
    recipe = load_recipe("gpt2-modern", LARGE)
    plan = on_card(recipe, "RTX 3060")
    assert plan.estimate is None and plan.micro_batch is None and plan.smallest_memory > plan.memory_limit
    assert "run.activation_checkpointing=true" in text(recipe, "RTX 3060")


@pytest.mark.parametrize("name", ["H100", "all"])
def test_ranks_that_do_not_divide_the_batch_are_rejected(name: str) -> None:
    with pytest.raises(UserError) as raised:
        plan_for_cards(load_recipe("gpt2-modern"), name, 3, None, RUNS)
    assert "--gpus 3" in raised.value.problem and "512" in raised.value.problem and "1 or 2 or 4" in raised.value.fix


def test_float32_has_no_bfloat16_copies_and_no_speed() -> None:
    recipe = load_recipe("gpt2-modern", ["run.precision=float32", "published.hours=0"])
    plan = on_card(recipe, "H100")
    assert plan.estimate is not None and not plan.estimate.layout.bfloat16 and not plan.estimate.memory.casts
    assert "tokens/s" not in text(recipe, "H100") and "bfloat16 copies" not in text(recipe, "H100")


@pytest.mark.parametrize(
    ("settings", "sharded"),
    [
        ([], False),
        (["run.parallel=fsdp"], True),
        ([*SEVEN_B, "data.micro_batch=4", "run.activation_checkpointing=true"], True),
    ],
)
def test_model_is_sharded_if_configured_or_too_large(settings: list[str], sharded: bool) -> None:
    recipe = load_recipe("gpt2-modern", settings)
    plan = on_card(recipe, "H100", ranks=8)
    assert plan.estimate is not None and plan.estimate.layout.sharded is sharded
    advised = "set run.parallel=fsdp" in text(recipe, "H100", ranks=8)
    assert advised is (sharded and recipe.run.parallel != "fsdp")


def test_cost_is_hours_times_cards_times_price() -> None:
    recipe = load_recipe("gpt2-modern")
    found = estimate(recipe, 4, Hardware(find_card("RTX 5090"), usd_per_hour=0.5), 32)
    assert found is not None
    assert found.usd == pytest.approx([4 * 0.5 * hours for hours in found.hours])
    assert found.memory.total <= USABLE_SHARE * 32e9 and found.memory == estimate_memory(recipe, found.layout)
    assert "0.50 USD" in text(recipe, "RTX 5090", 4, 0.5)
    assert "0 to 0 USD" in text(recipe, "RTX 5090", 4, 0.0)


def test_cost_without_a_price_names_the_option() -> None:
    plan = on_card(load_recipe("gpt2-modern"), "RTX 5090", 4)
    assert plan.estimate is not None and plan.estimate.usd is None
    assert "--price" in text(load_recipe("gpt2-modern"), "RTX 5090", 4)


def test_table_has_a_row_for_every_card() -> None:
    lines = text(load_recipe("gpt2-modern"), "all").splitlines()
    for card in CARDS:
        assert sum(line.startswith(f"  {card.name:<24} ") for line in lines) == 1, card.name


def test_cpu_plan_follows_from_the_measured_step() -> None:
    recipe = load_recipe("demo-modern")
    plan = plan_for_this_machine(recipe, "CPU", rates_of_step(recipe, 2.0), 1e12, False, RUNS).target
    assert isinstance(plan, CpuPlan) and plan.micro_batch.fit is MicroBatchFit.FITS
    assert plan.step_seconds == pytest.approx((1.6, 2.5))
    assert plan.tokens_per_second == pytest.approx((1024 / 1.6, 1024 / 2.5))
    assert plan.time.training == pytest.approx((1.6 * recipe.run.max_steps, 2.5 * recipe.run.max_steps))


def test_cpu_plan_without_memory_fits_no_sequence() -> None:
    plan = plan_for_this_machine(load_recipe("demo-modern"), "CPU", RATES, 1e6, False, RUNS)
    assert isinstance(plan.target, CpuPlan)
    assert plan.target.micro_batch.fit is MicroBatchFit.DOES_NOT_FIT and plan.target.micro_batch.largest == 0
    assert "not even one sequence fits" in "\n".join(plan_lines(plan))


def test_command_plans_for_this_machine_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "demo-modern", "run.device=cpu"]) == 0
    shown = capsys.readouterr().out
    assert "this machine" in shown and "tokens/s" in shown
    assert list(tmp_path.iterdir()) == []


def test_command_rejects_an_unknown_card_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "gpt2-modern", "--gpu", "RTX 6090"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("error: --gpu 'RTX 6090'") and len(shown.err.splitlines()) == 1
