"""The design of an ablation: arms, runs and settings that follow from it."""

from dataclasses import replace
from pathlib import Path

import pytest

from regpt.ablation.design import (
    AA,
    BASE,
    Arm,
    Design,
    Trial,
    Tuning,
    check_design,
    leave_one_out,
    open_design,
    parse_change,
    parse_tuning,
    read_design,
)
from regpt.base.errors import RecipeError, UserError
from regpt.cli.main import main

MUON = Arm("muon", ("optimizer.kind=muon", "optimizer.muon_lr=0.03"))
DESIGN = Design("demo-modern", ("run.max_steps=60",), (Arm(BASE), MUON, Arm(AA)), (5, 6), None, 1)


def test_base_and_change_differ_in_nothing_but_the_change() -> None:
    base, muon = (DESIGN.recipe_of(Trial(name, 5)) for name in (BASE, "muon"))
    assert muon.optimizer.kind == "muon" and muon.optimizer.muon_lr == 0.03
    assert replace(muon, optimizer=base.optimizer) == base
    assert (base.run.seed, base.run.threads, base.run.max_steps) == (5, 1, 60)


def test_a_a_arm_has_the_order_of_the_base_and_other_weights() -> None:
    base, other = (DESIGN.recipe_of(Trial(name, 5)) for name in (BASE, AA))
    assert other.run.seed == base.run.seed and other.run.initial_seed != base.run.initial_seed
    assert replace(other, run=replace(other.run, weights_seed=0)) == base


def test_trials_come_seed_by_seed_and_tuning_has_a_seed_of_its_own() -> None:
    tuned = replace(DESIGN, tuning=Tuning("optimizer.max_lr", ("1e-3", "2e-3")))
    assert [(t.arm, t.seed) for t in tuned.seed_trials()] == [(arm, s) for s in (5, 6) for arm in (BASE, "muon", AA)]
    assert [(t.arm, t.value) for t in tuned.tuning_trials()] == [
        (arm, value) for arm in (BASE, "muon") for value in ("1e-3", "2e-3")
    ]
    assert {t.seed for t in tuned.tuning_trials()}.isdisjoint(tuned.seeds)


def test_tuned_rate_keeps_the_share_of_the_smallest_rate() -> None:
    tuned = replace(DESIGN, tuning=Tuning("optimizer.max_lr", ("3e-3", "6e-3")))
    recipe = tuned.recipe_of(Trial(BASE, 5), best="3e-3")
    assert recipe.optimizer.max_lr == 3e-3 and recipe.optimizer.min_lr == pytest.approx(3e-4)


def test_factor_of_all_rates_scales_every_rate_of_the_arm() -> None:
    tuned = replace(DESIGN, tuning=Tuning("rates", ("0.5", "2")))
    optimizer = tuned.recipe_of(Trial("muon", 4, "2")).optimizer
    assert (optimizer.max_lr, optimizer.min_lr, optimizer.muon_lr) == pytest.approx((3e-3, 3e-4, 0.06))
    assert optimizer.head_lr == 0.0  # that of max_lr


def test_leave_one_out_builds_the_stack_and_every_stack_without_one() -> None:
    arms = leave_one_out([Arm("a", ("model.qk_norm=true",)), Arm("b", ("model.zero_init=true",))])
    assert [(arm.name, arm.settings) for arm in arms] == [
        ("all", ("model.qk_norm=true", "model.zero_init=true")),
        ("all-without-a", ("model.zero_init=true",)),
        ("all-without-b", ("model.qk_norm=true",)),
    ]


@pytest.mark.parametrize(
    ("text", "name", "settings"),
    [
        ("model.qk_norm=true", "qk_norm", ("model.qk_norm=true",)),
        ("my muon: optimizer.kind=muon", "my-muon", ("optimizer.kind=muon",)),
        ("model.mlp_hidden=512 model.activation=relu2", "mlp_hidden=512,activation=relu2", None),
        ("ramp: 'data.batch_ramp=64 until 1k'", "ramp", ("data.batch_ramp=64 until 1k",)),
    ],
)
def test_change_is_named_by_its_settings_or_by_the_user(text: str, name: str, settings: tuple[str, ...] | None) -> None:
    arm = parse_change(text)
    assert arm.name == name and arm.settings == (settings or tuple(text.split()))


@pytest.mark.parametrize("text", ["qk_norm", "", "muon:", "model=3", "model.qk_norm", 'data.path="a'])
def test_text_that_is_not_a_change_is_refused_with_the_text(text: str) -> None:
    with pytest.raises(UserError, match=f"'{text}'"):
        parse_change(text)


@pytest.mark.parametrize("text", ["optimizer.max_lr", "optimizer.max_lr=1e-3", "rates=1,1"])
def test_tuning_needs_two_different_values(text: str) -> None:
    with pytest.raises(UserError, match="two values"):
        parse_tuning(text)


def test_arms_of_one_name_and_arms_that_are_no_recipe_are_refused() -> None:
    with pytest.raises(UserError, match="two arms are called 'muon'"):
        check_design(replace(DESIGN, arms=(Arm(BASE), MUON, MUON)))
    with pytest.raises(RecipeError, match=r"model\.qk_nrom"):
        check_design(replace(DESIGN, arms=(Arm(BASE), Arm("typo", ("model.qk_nrom=true",)))))


def test_folder_keeps_its_design_and_accepts_more_seeds(tmp_path: Path) -> None:
    design = replace(DESIGN, tuning=Tuning("rates", ("0.5", "2")))
    open_design(tmp_path, design)
    assert read_design(tmp_path) == design
    more = replace(design, seeds=(5, 6, 7))
    open_design(tmp_path, more)
    assert read_design(tmp_path) == more
    for other in (design, replace(more, threads=2), replace(more, arms=(Arm(BASE), MUON))):
        with pytest.raises(UserError, match="another design"):
            open_design(tmp_path, other)


def test_plan_lists_every_run_and_trains_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ablate", "demo-modern", "--change", "model.qk_norm=true", "--aa", "--seeds", "2", "--plan"]
    assert main([*words, "--into", str(tmp_path / "new")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        f"{arm}-{seed}" for seed in (1337, 1338) for arm in ("base", "qk_norm", "a-a")
    ]
    assert not (tmp_path / "new").exists()


def test_ablation_without_a_change_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", "demo-modern"]) == 2
    assert "--change" in capsys.readouterr().err
