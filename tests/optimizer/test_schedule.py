"""The trapezoid: warm-up, constant rate and cooldown, for each kind of group, and what refuses it."""

from dataclasses import replace

import pytest

from regpt.base.errors import RecipeError
from regpt.new_recipe.intervals import with_intervals
from regpt.optimizer.schedule import GroupKind, are_same_rates, learning_rate, multiplier
from regpt.recipe.differences import recipe_digest
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import load_recipe

SHORT = ("run.max_steps=10", "optimizer.warmup_steps=2", "optimizer.max_lr=1.0", "optimizer.min_lr=0.2")
TRAPEZOID = (*SHORT, "optimizer.schedule=trapezoid", "optimizer.cooldown_steps=4")


def recipe_with(*settings: str) -> Recipe:
    return load_recipe("demo-modern", settings)


def rates(recipe: Recipe, steps: int = 12) -> list[float]:
    return [learning_rate(step, recipe) for step in range(steps)]


def test_trapezoid_warms_up_stays_constant_and_falls_linearly_to_the_minimum() -> None:
    assert rates(recipe_with(*TRAPEZOID)) == pytest.approx([0.5, *[1.0] * 6, 0.8, 0.6, 0.4, 0.2, 0.2])


def test_trapezoid_of_shape_1_sqrt_falls_by_the_root_of_the_progress() -> None:
    roots = [0.0, 0.5, 0.5**0.5, 0.75**0.5, 1.0, 1.0]
    shaped = rates(recipe_with(*TRAPEZOID, "optimizer.cooldown_shape=1-sqrt"))
    assert shaped[6:] == pytest.approx([0.2 + 0.8 * (1 - root) for root in roots])


def test_trapezoid_without_a_cooldown_stays_at_the_maximum() -> None:
    assert rates(recipe_with(*TRAPEZOID, "optimizer.cooldown_steps=0"))[1:10] == [1.0] * 9


def test_cooldown_of_adam_groups_has_steps_of_its_own() -> None:
    recipe = recipe_with(
        *TRAPEZOID,
        "optimizer.kind=muon",
        "optimizer.adam_cooldown_steps=2",
        "optimizer.max_lr=2.0",
        "optimizer.min_lr=0",
    )
    of_adam = [multiplier(step, recipe, GroupKind.ADAM) for step in range(10)]
    of_matrices = [multiplier(step, recipe, GroupKind.MATRICES) for step in range(10)]
    assert of_adam == pytest.approx([0.5, *[1.0] * 8, 0.5])
    assert of_matrices == pytest.approx([0.5, *[1.0] * 6, 0.75, 0.5, 0.25])
    same = recipe_with(*TRAPEZOID)
    assert multiplier(8, same, GroupKind.ADAM) == multiplier(8, same, GroupKind.MATRICES)


def test_more_steps_keep_the_past_rates_of_a_trapezoid_until_its_cooldown() -> None:
    longer = recipe_with(*TRAPEZOID, "run.max_steps=30")
    assert are_same_rates(7, recipe_with(*TRAPEZOID), longer)
    assert not are_same_rates(8, recipe_with(*TRAPEZOID), longer)
    assert not are_same_rates(4, recipe_with(*SHORT), recipe_with(*SHORT, "run.max_steps=30"))
    later = recipe_with(*TRAPEZOID, "optimizer.kind=muon", "optimizer.adam_cooldown_steps=8")
    assert not are_same_rates(7, recipe_with(*TRAPEZOID), later)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["optimizer.cooldown_steps=4"], ["cooldown_steps = 4", "'cosine'"]),
        (["optimizer.cooldown_shape=1-sqrt"], ["cooldown_shape = '1-sqrt'", "'cosine'"]),
        (["optimizer.schedule=trapezoid", "optimizer.cooldown_steps=9"], ["warmup_steps = 2", "= 9", "= 10", "to 8"]),
        (["optimizer.schedule=trapezoid", "optimizer.adam_cooldown_steps=9"], ["adam_cooldown_steps = 9", "to 8"]),
        (["optimizer.schedule=trapezoid", "optimizer.adam_cooldown_steps=4"], ["adam_cooldown_steps = 4", "'adamw'"]),
        (["optimizer.schedule=trapezoid", "optimizer.cooldown_steps=-1"], ["cooldown_steps = -1"]),
    ],
)
def test_impossible_cooldown_is_refused_with_both_values(settings: list[str], named: list[str]) -> None:
    with pytest.raises(RecipeError) as refused:
        recipe_with(*SHORT, *settings)
    assert all(name in str(refused.value) for name in named), refused.value


def test_digest_of_a_recipe_holds_the_schedule_only_where_it_is_not_cosine() -> None:
    written_out = recipe_with("optimizer.schedule=cosine", "optimizer.cooldown_steps=0")
    assert recipe_digest(written_out) == recipe_digest(recipe_with())
    assert recipe_digest(recipe_with("optimizer.schedule=trapezoid")) != recipe_digest(recipe_with())


def test_recipe_of_another_length_keeps_the_share_of_the_cooldown() -> None:
    base = recipe_with("run.max_steps=400", "optimizer.schedule=trapezoid", "optimizer.cooldown_steps=100")
    shorter = with_intervals(replace(base, run=replace(base.run, max_steps=40)), base)
    assert shorter.optimizer.cooldown_steps == 10 and list(shorter.problems()) == []
