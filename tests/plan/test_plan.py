"""`regpt plan`: the roofline is what docs/plan.md says of it, impossible records are flagged, sums add up."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.roofline import card_table, elsewhere_table, fit_table, recipe_table
from regpt.base.cards import CARDS, find_card
from regpt.base.errors import UserError
from regpt.base.recipe import Recipe
from regpt.base.settings import load_recipe
from regpt.cli.main import main
from regpt.plan.estimate import Hardware, estimate
from regpt.plan.memory import USED, estimate_memory
from regpt.plan.roofline import (
    ELSEWHERE,
    HIGH,
    LOW,
    MODELS,
    PASSES,
    PUBLISHED,
    SHARE,
    fitted,
    halves,
    seconds_per_token,
    speeds,
)
from regpt.plan.sizes import checkpoints_kept, disk_needed
from regpt.plan.summary import plan_for_cards
from regpt.plan.warnings import record_warnings, recorded_cards

PAGE = Path(__file__).parent.parent.parent / "docs" / "plan.md"


def lines(recipe: Recipe, card: str, ranks: int = 1, price: float | None = None) -> str:
    return "\n".join(plan_for_cards(recipe, card, ranks, price, Path("runs")))


# The roofline


def test_the_constants_are_those_that_one_half_of_the_published_speeds_gives() -> None:
    share, passes = fitted(halves()[0])
    assert share == pytest.approx(SHARE, abs=0.005) and passes == pytest.approx(PASSES, abs=0.05)


def test_on_the_half_that_was_held_out_the_roofline_is_within_a_fifth() -> None:
    fit, held_out = halves()
    assert len(held_out) >= 4 and not set(fit) & set(held_out)
    for speed in held_out:
        assert speed.predicted == pytest.approx(speed.tokens_per_second, rel=0.2), speed


def test_the_fit_finds_constants_that_were_put_in() -> None:
    made = [
        replace(s, tokens_per_second=1 / seconds_per_token(MODELS[s.model], find_card(s.card), 0.6, 9.0))
        for s in PUBLISHED
    ]
    assert fitted(made) == pytest.approx((0.6, 9.0))


def test_all_published_speeds_but_one_lie_in_the_range() -> None:
    outside = [
        speed
        for speed in (*PUBLISHED, *ELSEWHERE)
        if not LOW * speed.predicted <= speed.tokens_per_second <= HIGH * speed.predicted
    ]
    assert [speed.card for speed in outside] == ["RTX 5090"]


def test_models_beyond_the_fit_get_shares_of_the_peak_that_were_published() -> None:
    seven = replace(Recipe(name="x").model, n_layer=32, n_head=32, n_embd=4096, mlp_hidden=11008, tied_head=False)
    low, high = speeds(seven, find_card("H100"))
    assert low * seven.flops_per_token == pytest.approx(0.30 * 989.4e12)
    assert high * seven.flops_per_token == pytest.approx(0.48 * 989.4e12)


@pytest.mark.parametrize("table", [fit_table, elsewhere_table, recipe_table, card_table])
def test_the_page_shows_what_the_command_prints(table) -> None:  # type: ignore[no-untyped-def]
    assert "\n".join(table()) in PAGE.read_text(encoding="utf-8")


# What is said


def test_the_record_that_cannot_be_is_flagged_and_the_one_that_can_be_is_not() -> None:
    said = list(record_warnings(load_recipe("gpt2-050226")))
    assert len(said) == 1 and "103% of peak: that cannot be" in said[0] and "253,000 tokens/s" in said[0]
    assert list(record_warnings(load_recipe("gpt2-230126"))) == []
    one_window = ["data.micro_batch=1", "data.total_batch_tokens=1024"]  # which does not divide among four cards
    assert list(record_warnings(load_recipe("gpt2-230126", one_window))) == []


def test_a_record_far_above_the_range_is_doubted() -> None:
    said = list(record_warnings(load_recipe("gpt2-050226", ["published.hours=26"])))
    assert len(said) == 1 and "times the good end" in said[0]
    assert list(record_warnings(load_recipe("gpt2-050226", ["published.hours=45"]))) == []


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
def test_recorded_hardware_is_read(hardware: str, found: tuple[int, str] | None) -> None:
    cards = recorded_cards(hardware)
    assert (cards and (cards[0], cards[1].name)) == found


def test_parts_of_memory_add_up_and_the_largest_micro_batch_is_named() -> None:
    said = lines(load_recipe("gpt2-050226"), "RTX 5090")
    parts = [float(size) for size in re.findall(r"memory, .*?([\d.]+) GB$", said, re.MULTILINE)]
    whole = re.search(r"memory together +([\d.]+) GB of ([\d.]+) GB", said)
    assert whole and sum(parts) == pytest.approx(float(whole[1]), abs=0.05) and float(whole[2]) == 28.8
    assert "32 x 1,024 tokens fit; the largest that fits is 68 x 1,024" in said
    assert "16 micro-batches a step on the card" in said


def test_a_micro_batch_that_does_not_fit_is_replaced_by_one_that_does() -> None:
    said = lines(load_recipe("gpt2-050226"), "RTX 3080")
    assert re.search(r"the recipe's 32 does not fit; reckoned with 8 x 1,024", said)
    huge = load_recipe("gpt2-050226", ["model.n_layer=48", "model.n_embd=4096", "model.n_head=32"])
    assert "does not fit" in lines(huge, "RTX 3060") and "run.activation_checkpointing=true" in lines(huge, "RTX 3060")
    for name in ("H100", "all"):
        with pytest.raises(UserError, match=r"--gpus 3: .* 1 or 2 or 4 would do"):
            lines(load_recipe("gpt2-050226"), name, ranks=3)


def test_a_plan_is_in_the_precision_and_the_form_that_the_recipe_asks_for() -> None:
    in_float32 = lines(load_recipe("gpt2-050226", ["run.precision=float32"]), "H100")
    assert "weights again in bfloat16" not in in_float32 and "not reckoned: published speeds" in in_float32
    sharded = lines(load_recipe("gpt2-050226", ["run.parallel=fsdp"]), "H100", ranks=8)
    assert "a share of the model on each (fsdp)" in sharded and "ddp" not in sharded
    seven = ["model.n_layer=32", "model.n_head=32", "model.n_embd=4096", "model.mlp_hidden=11008"]
    seven += ["data.micro_batch=4", "run.activation_checkpointing=true"]
    assert "set run.parallel=fsdp" in lines(load_recipe("gpt2-050226", seven), "H100", ranks=8)


def test_money_is_the_price_of_all_cards_for_the_hours() -> None:
    recipe = load_recipe("gpt2-050226")
    found = estimate(recipe, 4, Hardware(find_card("RTX 5090"), usd_per_hour=0.5), 32)
    assert found is not None
    assert found.usd == pytest.approx([4 * 0.5 * hours for hours in found.hours])
    assert "USD at 0.5 USD for a card and hour" in lines(recipe, "RTX 5090", 4, 0.5)
    assert "say --price" in lines(recipe, "RTX 5090", 4)
    assert "0 to 0 USD at 0 USD" in lines(recipe, "RTX 5090", 4, 0.0)
    assert found.memory.total <= USED * 32e9 and found.memory == estimate_memory(recipe, found.placing)


def test_every_card_has_a_line() -> None:
    said = lines(load_recipe("gpt2-050226"), "all")
    assert all(f"    {card.name:<24} " in said for card in CARDS)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ([], 8),  # 5,000 to 35,000 and the last
        (["checkpoint.every=0"], 1),
        (["checkpoint.keep_last=2", "checkpoint.keep_best=false"], 2),
        (["checkpoint.keep_last=2"], 3),
        (["checkpoint.keep_last=2", "checkpoint.keep_every=10000"], 6),
        (["run.max_steps=5000"], 1),
    ],
)
def test_checkpoints_that_will_lie_there_are_counted(settings: list[str], kept: int) -> None:
    recipe = load_recipe("gpt2-050226", settings)
    assert checkpoints_kept(recipe) == kept
    assert disk_needed(recipe) == (kept + 1) * 12 * recipe.model.parameters


def test_the_command_plans_for_this_machine_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "demo-modern", "run.device=cpu"]) == 0
    said = capsys.readouterr().out
    assert "on this machine" in said and re.search(r"a step +[\d.]+ to [\d.]+ s, ", said)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_card_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "gpt2-050226", "--gpu", "RTX 6090"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: --gpu 'RTX 6090'") and len(said.err.splitlines()) == 1
