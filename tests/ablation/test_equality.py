"""Arms that are equal to the base: in parameters, FLOPs or time."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from regpt.ablation import calibration
from regpt.ablation.calibration import calibrated, with_stored_speeds
from regpt.ablation.design import (
    BASE,
    Arm,
    Design,
    Trial,
    Tuning,
    check_design,
    null_arms,
    open_design,
    read_design,
)
from regpt.ablation.equality import OTHER_STEPS, SCHEDULE_STEPS, Equal, Speed, flops
from regpt.ablation.wording import HELD_EQUAL, LOADS, design_lines, worst_load
from regpt.ablation.workers import Workers
from regpt.base.errors import UserError
from regpt.cli.main import main
from regpt.optimizer.sizes import newton_schulz_flops
from regpt.recipe.optimization import OptimizerRecipe
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import to_toml
from regpt.tracking.run import MachineLoad
from tests.conftest import tiny_recipe
from tests.helpers.golden import assert_golden

RELU2 = Arm("relu2", ("model.activation=relu2",))
SHALLOW = Arm("shallow", ("model.n_layer=2",))
MUON = Arm("muon", ("optimizer.kind=muon", "optimizer.muon_momentum_warmup_steps=40"))
UNTIED = Arm("untied", ("model.tied_head=false",))
SETTINGS = ("run.max_steps=200", "optimizer.warmup_steps=20")
DESIGN = Design("demo-modern", SETTINGS, (Arm(BASE), RELU2, SHALLOW, MUON, *null_arms(2)), (5,), None, 1)


def recipe(design: Design, arm: str) -> Recipe:
    return design.recipe_of(Trial(arm, 5))


def test_equal_parameters_set_a_hidden_width_and_nothing_else() -> None:
    deep = Arm("deep", ("model.n_layer=3", "model.n_embd=136"))
    design = replace(DESIGN, equal=Equal.PARAMETERS, arms=(*DESIGN.arms, deep))
    base = recipe(design, BASE)
    assert base == recipe(DESIGN, BASE) and recipe(design, "muon") == recipe(DESIGN, "muon")
    for arm in ("relu2", "shallow", "deep"):
        ours, own = recipe(design, arm), recipe(replace(design, equal=Equal.TOKENS), arm)
        step = replace(ours.model, mlp_hidden=ours.model.mlp_hidden + 8).parameters - ours.model.parameters
        assert abs(ours.model.parameters - base.model.parameters) <= step / 2
        assert ours.model.mlp_hidden % 8 == 0 and ours.model.mlp_hidden != own.model.mlp_hidden
        assert replace(ours, model=replace(ours.model, mlp_hidden=own.model.mlp_hidden)) == own


def test_arm_that_cannot_have_the_parameters_is_refused_with_both() -> None:
    untied = replace(DESIGN, arms=(Arm(BASE), UNTIED), equal=Equal.PARAMETERS)
    base = recipe(untied, BASE).model
    least = replace(base, tied_head=False, mlp_hidden=8).parameters
    with pytest.raises(UserError, match=rf"arm 'untied': {least:,} .*mlp_hidden = 8.*{base.parameters:,}"):
        check_design(untied)


def test_hidden_width_of_an_arm_is_kept_within_one_percent() -> None:
    def design(width: int, tuning: Tuning | None = None) -> Design:
        own = Arm("own", ("model.activation=relu2", *([f"model.mlp_hidden={width}"] if width else [])))
        return replace(DESIGN, arms=(Arm(BASE), own), equal=Equal.PARAMETERS, tuning=tuning)

    base = recipe(DESIGN, BASE).model
    near = base.mlp_hidden * 3 // 2 + 16
    assert recipe(design(near), "own").model.mlp_hidden == near
    wide = design(2048)
    count = replace(base, activation="relu2", mlp_hidden=2048).parameters
    with pytest.raises(UserError, match=f"arm 'own': {count:,} .*mlp_hidden = 2048.*{base.parameters:,}"):
        check_design(wide)
    with pytest.raises(UserError, match=r"arm 'base'.*mlp_hidden = 512"):
        check_design(design(0, Tuning("model.mlp_hidden", ("512", "2048"))))


@pytest.mark.parametrize("arm", ["shallow", "muon"])
def test_equal_flops_come_from_the_nearest_number_of_steps(arm: str) -> None:
    design = replace(DESIGN, equal=Equal.FLOPS)
    base, ours = recipe(design, BASE), recipe(design, arm)
    target, orthogonalization = base.model.flops_per_token * base.total_tokens, newton_schulz_flops(ours)

    def training(steps: int) -> float:
        return ours.model.flops_per_token * ours.tokens_after(steps) + orthogonalization * steps

    steps = ours.run.max_steps
    assert steps == min(range(1, 1000), key=lambda count: abs(training(count) - target))
    assert (steps > 200) == (arm == "shallow") and steps != 200
    assert flops(ours).of(ours, steps) == training(steps)
    assert recipe(design, "a-a-2").run.max_steps == base.run.max_steps == 200


def test_settings_in_steps_keep_their_shares_and_fit_into_the_run() -> None:
    base = (*SETTINGS, "optimizer.schedule=trapezoid", "optimizer.cooldown_steps=180", "optimizer.average_steps=30")
    design = replace(DESIGN, settings=base, equal=Equal.FLOPS)
    ours, own = recipe(design, "muon").optimizer, recipe(replace(design, equal=Equal.TOKENS), "muon").optimizer
    steps = recipe(design, "muon").run.max_steps
    for name in SCHEDULE_STEPS + OTHER_STEPS:
        assert getattr(ours, name) == pytest.approx(getattr(own, name) * steps / 200, abs=1.0)
    assert ours.warmup_steps + ours.cooldown_steps <= steps
    slow = {BASE: Speed(1e-4, 0.0, True), "muon": Speed(1.0, 0.0, True)}
    shortest = recipe(replace(design, equal=Equal.TIME, speeds=slow), "muon")
    assert (shortest.run.max_steps, shortest.optimizer.warmup_steps, shortest.optimizer.cooldown_steps) == (1, 1, 0)
    assert "optimizer.muon_momentum_warmup_steps" not in " ".join(design.words_of(Trial("shallow", 5)))


def test_every_setting_that_counts_steps_of_the_optimizer_is_scaled() -> None:
    counted = {name for name in OptimizerRecipe.__dataclass_fields__ if name.endswith("_steps")}
    assert counted - {"newton_schulz_steps"} == {*SCHEDULE_STEPS, *OTHER_STEPS}  # iterations within one step


def test_equal_flops_follow_a_ramp_of_the_batch() -> None:
    ramp = Arm("ramp", ("data.batch_ramp=2048 until 100k",))
    design = replace(
        DESIGN, settings=(*SETTINGS, "data.total_batch_tokens=4096"), arms=(Arm(BASE), ramp), equal=Equal.FLOPS
    )
    base, ours = recipe(design, BASE), recipe(design, "ramp")
    assert ours.run.max_steps > 200
    assert abs(ours.total_tokens - base.total_tokens) <= base.data.total_batch_tokens / 2


def test_equal_time_scales_steps_by_the_measured_speeds() -> None:
    speeds = {BASE: Speed(2e-4, 0.0, True), "relu2": Speed(1e-4, 0.0, True), "shallow": Speed(4e-4, 0.3, True)}
    timed = replace(DESIGN, equal=Equal.TIME)
    assert recipe(timed, "relu2").run.max_steps == 200  # nothing is measured yet
    measured = replace(timed, speeds={**speeds, "muon": Speed(2e-4, -1.0, True)})
    assert [recipe(measured, arm.name).run.max_steps for arm in DESIGN.arms] == [200, 400, 100, 200, 200, 200]
    assert worst_load(measured.speeds.values()) is MachineLoad.BUSY
    assert worst_load([Speed(1.0, -1.0, True)]) is MachineLoad.UNKNOWN
    assert worst_load([Speed(1.0, 0.9, False), Speed(1.0, 0.01, True)]) is MachineLoad.QUIET


@pytest.mark.slow
def test_speeds_are_measured_once_and_continue_with_the_folder(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "SECONDS", 0.05)
    (tmp_path / "tiny.toml").write_text(to_toml(tiny_recipe(tmp_path)), encoding="utf-8")
    wide = Arm("wide", ("model.n_embd=256", "model.mlp_hidden=1024"))
    design = Design(str(tmp_path / "tiny.toml"), (), (Arm(BASE), wide, *null_arms(1)), (1,), None, 0, Equal.TIME)
    open_design(tmp_path, design)
    stored = Speed(1.0, 0.0, True)  # by an earlier call, which was killed
    (tmp_path / calibration.CALIBRATION_FILE).write_text(json.dumps({"wide": vars(stored)}))
    found: dict[str, Speed] = {}
    measured = calibrated(tmp_path, design, Workers([""]), found.__setitem__, lambda: None)
    assert found.keys() == {BASE} and measured.speeds == {**found, "wide": stored}
    assert 0.0 < found[BASE].token_seconds < 0.1 and found[BASE].is_on_cpu
    assert measured.recipe_of(Trial("wide", 1)).run.max_steps == 1
    assert with_stored_speeds(tmp_path, design).speeds == measured.speeds
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_design_of_another_equality_is_another_ablation(tmp_path: Path) -> None:
    open_design(tmp_path, DESIGN)
    assert "equal" not in (tmp_path / "ablation.json").read_text() and read_design(tmp_path) == DESIGN
    other = replace(DESIGN, equal=Equal.FLOPS)
    with pytest.raises(UserError, match="another design"):
        open_design(tmp_path, other)
    open_design(tmp_path / "new", other)
    assert read_design(tmp_path / "new") == other


def test_a_a_arms_have_weights_of_their_own() -> None:
    seeds = [recipe(DESIGN, arm).run.initial_seed for arm in (BASE, "a-a", "a-a-2")]
    assert len(set(seeds)) == 3 and seeds[1] == 1_000_005  # as in folders with one such arm


def test_designs_say_what_is_equal_and_how_long_arms_are() -> None:
    assert HELD_EQUAL.keys() == set(Equal) and LOADS.keys() == set(MachineLoad)
    seconds = {BASE: 2e-4, "relu2": 1.9e-4, "shallow": 1.5e-4, "muon": 2.4e-4}
    speeds = {name: Speed(one, 0.3, True) for name, one in seconds.items()}
    lines = []
    for equal in Equal:
        design = replace(DESIGN, equal=equal, speeds=speeds if equal is Equal.TIME else {})
        lines += [f"# {equal}", *design_lines(design, {}), ""]
    assert_golden("ablation-designs.txt", "\n".join(lines))


def test_plan_at_equal_flops_lists_the_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "ablate",
        "demo-modern",
        "--change",
        "shallow: model.n_layer=2",
        "--seeds",
        "1",
        "--aa-arms",
        "2",
        "--plan",
    ]
    for equal in ("flops", "time"):
        assert main([*words, "--at-equal", equal, "--into", str(tmp_path)]) == 0
        printed = capsys.readouterr()
        assert [line.split(":")[0] for line in printed.out.splitlines()] == [
            "base-1337", "shallow-1337", "a-a-1337", "a-a-2-1337",
        ]  # fmt: skip
        assert ("run.max_steps=" in printed.out) == (equal == "flops")
        assert bool(printed.err) == (equal == "time")
