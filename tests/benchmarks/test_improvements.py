"""The designs and the measurements of docs/improvements.md: every arm is a recipe, and figures are those recorded."""

import dataclasses
import shlex
from pathlib import Path

import pytest

from benchmarks import measured
from benchmarks.improvements import BASE, EXPERIMENTS, NEXT, SIZES, command, main, next_settings
from benchmarks.measured import Measured, MeasuredEffect
from regpt.ablation.design import Design, Trial, check_design
from regpt.cli.ablate import design_of
from regpt.cli.main import parse
from regpt.recipe.settings import load_recipe

EFFECT = MeasuredEffect("muon", 6.5, -0.25, 0.1, 0.004, 0.12, 0.4, "1", "LOWER")
MEASURED = Measured("first", "7M", "prose", 7_230_592, 499_712, 3, 6.75, "2", (EFFECT,))


def design(experiment: str, size: str) -> Design:
    return design_of(parse(command(EXPERIMENTS[experiment], size, "stdlib", Path("into"), None)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_arm_of_an_experiment_is_a_recipe(experiment: str, size: str) -> None:
    found = design(experiment, size)
    check_design(found)
    changes = [arm for arm in found.arms if not arm.is_null]
    assert len({arm.settings for arm in changes}) == len(changes) > 1


def test_arms_with_another_mlp_have_as_many_parameters() -> None:
    found = design("switches", "7M")
    base, relu2, experts = (found.recipe_of(Trial(arm, 1)).model for arm in ("base", "relu2", "experts"))
    assert relu2.parameters == base.parameters
    routers = base.n_layer * 4 * base.n_embd
    assert experts.active_parameters - routers == base.parameters


def test_next_has_the_settings_of_its_recipe_and_less_tokens() -> None:
    recipe = load_recipe(BASE, next_settings(load_recipe(BASE)))
    wanted = load_recipe(NEXT)
    assert (recipe.model, recipe.optimizer) == (wanted.model, wanted.optimizer)
    found = design("third", "7M")
    base, third, quarter = (found.recipe_of(Trial(name, 1)) for name in ("base", "next", "next_quarter"))
    assert base.total_tokens >= 1_000_000
    assert 3 * third.total_tokens <= base.total_tokens >= 4 * quarter.total_tokens
    assert base.data.total_batch_tokens == third.data.total_batch_tokens == quarter.data.total_batch_tokens


def test_command_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["third", "--command", "--text", "my text", "--jobs", "1"]) == 0
    words = shlex.split(capsys.readouterr().out)
    assert words[:3] == ["regpt", "ablate", BASE] and "data.source=my text" in words and words[-1] == "1"


def test_a_measurement_replaces_the_earlier_one_of_its_kind(tmp_path: Path) -> None:
    file = tmp_path / "measured.json"
    other = dataclasses.replace(MEASURED, corpus="code")
    for one in (MEASURED, other, dataclasses.replace(MEASURED, base_loss=7.0)):
        measured.record(one, file)
    assert measured.recorded(file) == [other, dataclasses.replace(MEASURED, base_loss=7.0)]
    (line,) = [line for line in measured.lines_of("muon", file) if "prose" in line]
    assert "-0.2500 (-0.3500 to -0.1500)" in line and "7.2M" in line and "0.50M" in line and "lower" in line
    rows = [line for line in measured.table("first", file) if line.startswith("| muon")]
    assert len(rows) == 2 and "60%" in rows[0].replace(" ", "")
    assert list(measured.lines_of("normuon", file)) == ["- Measured: not yet."]


def test_recorded_figures_are_of_arms_that_their_experiment_has() -> None:
    for one in measured.recorded():
        arms = {arm.name for arm in design(one.experiment, one.size).arms}
        assert {effect.arm for effect in one.effects} <= arms | {"average"}
