"""A ramp of the batch: the size of every step, the tokens before it, and which windows it has."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regpt.base.errors import RecipeError
from regpt.recipe.batch_ramp import batch_sizes, parse_ramp
from regpt.recipe.differences import recipe_digest
from regpt.recipe.settings import load_recipe
from regpt.training.guard import Guard

RAMP = "data.batch_ramp=4096 until 10k, 8192 until 30k"  # three steps of 4,096, three of 8,192, then 16,384
SETTINGS = ("data.total_batch_tokens=16384", "data.micro_batch=2", "model.block_size=256", "run.max_steps=40")


def test_ramp_is_read_with_prefixes_and_any_spaces() -> None:
    assert parse_ramp("131072 until 50M,  262_144 UNTIL 1.5b ") == [(131_072, 50_000_000), (262_144, 1_500_000_000)]
    assert parse_ramp("") == []


def test_steps_grow_when_the_tokens_of_a_stage_are_seen() -> None:
    recipe = load_recipe("demo-modern", [*SETTINGS, RAMP])
    assert [recipe.batch_tokens(step) for step in range(8)] == [4096] * 3 + [8192] * 3 + [16_384] * 2
    assert [recipe.tokens_after(step) for step in (0, 3, 4, 6, 8)] == [0, 12_288, 20_480, 36_864, 69_632]
    assert recipe.total_tokens == 36_864 + 34 * 16_384
    assert (recipe.batch_windows, recipe.common_windows, recipe.accumulation_steps()) == (64, 16, 32)


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 500)), max_size=4), st.integers(1, 60), st.integers(0, 90))
def test_tokens_are_the_sum_of_the_steps_and_steps_for_is_their_inverse(
    stages: list[tuple[int, int]], last: int, step: int
) -> None:
    sizes = batch_sizes(", ".join(f"{batch} until {until}" for batch, until in stages), last)
    total = sum(sizes.batch_tokens(earlier) for earlier in range(step))
    assert sizes.tokens_after(step) == total and sizes.steps_for(total) == step
    assert sizes.steps_for(total + 1) == step + 1


@given(st.sets(st.integers(0, 12), max_size=6))
def test_windows_are_those_without_a_ramp_and_none_is_in_two_batches(excluded: set[int]) -> None:
    recipe = load_recipe("demo-modern", [*SETTINGS, RAMP])
    guard = Guard(recipe.guard)
    guard.exclude(sorted(excluded), rollbacks=1)
    spans = [recipe.batch_positions(guard.batch_of(step), step) for step in range(20)]
    assert [256 * len(span) for span in spans] == [recipe.batch_tokens(step) for step in range(20)]
    assert all(span.stop <= later.start for span, later in pairwise(spans))
    if not excluded:
        assert [position for span in spans for position in span] == list(range(spans[-1].stop))
    for number in excluded:
        dropped = set(recipe.batch_positions(number, number))
        assert not any(dropped & set(span) for span in spans)


@pytest.mark.parametrize(
    ("ramp", "named"),
    [
        ("4096 to 10k", ["'4096 to 10k'", "131072 until 50M"]),
        ("4096 until 10k, 4096 until 20k", ["4096 follows 4096"]),
        ("32768 until 10k", ["total_batch_tokens", "16384 follows 32768"]),
        ("4096 until 10k, 8192 until 5k", ["5,000 follows 10,000"]),
        ("4000 until 10k", ["4000 is not divisible", "= 512"]),
        ("0 until 10k", ["0 follows 0"]),
    ],
)
def test_impossible_ramp_is_refused_with_its_values(ramp: str, named: list[str]) -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe("demo-modern", [*SETTINGS, f"data.batch_ramp={ramp}"])
    assert all(name in str(refused.value) for name in ("data.batch_ramp", *named)), refused.value
    assert len(refused.value.problems) == 1


def test_smallest_step_must_divide_among_the_ranks() -> None:
    recipe = load_recipe("demo-modern", [*SETTINGS, "data.batch_ramp=1024 until 10k"])
    assert list(recipe.batch_problems(2)) == []
    assert [problem.setting for problem in recipe.batch_problems(4)] == ["data.batch_ramp"]


def test_recipe_without_a_ramp_keeps_its_digest() -> None:
    assert recipe_digest(load_recipe("demo-modern", ["data.batch_ramp="])) == recipe_digest(load_recipe("demo-modern"))
