"""Interactions: what a change does inside the stack of all changes, and the report of an ablation as a whole."""

from pathlib import Path

import pytest

from regpt.ablation.design import BASE, Arm, Design, Trial, leave_one_out, null_arms, stack_without
from regpt.ablation.effects import Effect, Results
from regpt.ablation.interactions import Interaction, Interplay, interactions_of
from regpt.ablation.page import write_page
from regpt.ablation.paired import differences, p_value
from regpt.ablation.wording import INTERPLAY, interplay_lines
from tests.helpers.golden import assert_golden

scipy_stats = pytest.importorskip("scipy.stats")

CHANGES = [Arm("a", ("model.qk_norm=true",)), Arm("b", ("model.zero_init=true",)), Arm("c", ("model.z_loss=1e-4",))]
# Final losses of seeds 1, 2, 3. Alone a gains 0.2, b 0.1, c nothing. Together a gains 0.05, b 0.2, c nothing.
LOSSES = {
    BASE: (7.000, 7.100, 6.900),
    "a": (6.800, 6.901, 6.699),
    "b": (6.899, 7.001, 6.800),
    "c": (7.001, 7.099, 6.901),
    "all": (6.700, 6.801, 6.600),
    "all-without-a": (6.751, 6.850, 6.649),
    "all-without-b": (6.900, 6.999, 6.801),
    "all-without-c": (6.701, 6.799, 6.600),
}


def design(changes: list[Arm], seeds: int = 3) -> Design:
    arms = (Arm(BASE), *changes, *leave_one_out(changes), *null_arms(1))
    return Design("demo-modern", ("run.max_steps=60",), arms, tuple(range(1, seeds + 1)), None, 1)


def found(changes: list[Arm], seeds: int = 3) -> dict[str, Interaction]:
    losses = {Trial(arm, seed): LOSSES[arm][seed - 1] for arm in LOSSES for seed in range(1, seeds + 1)}
    return {one.arm: one for one in interactions_of(design(changes, seeds), losses)}


def test_interaction_is_the_difference_of_both_effects_with_its_interval() -> None:
    one = found(CHANGES)["a"]
    assert one.alone.mean == pytest.approx(-0.2) and one.inside.mean == pytest.approx(-0.05, abs=1e-3)
    contrast = [LOSSES["all"][n] - LOSSES["all-without-a"][n] - LOSSES["a"][n] + LOSSES[BASE][n] for n in range(3)]
    expected = scipy_stats.ttest_1samp(contrast, 0.0)
    low, high = expected.confidence_interval(0.95)
    middle, half = one.contrast.mean, one.contrast.half_width
    assert (middle - half, middle + half) == pytest.approx((low, high), rel=1e-6)


def test_interplay_says_which_changes_are_worth_more_or_less_together() -> None:
    assert {arm: one.interplay for arm, one in found(CHANGES).items()} == {
        "a": Interplay.WORTH_LESS,
        "b": Interplay.WORTH_MORE,
        "c": Interplay.NOT_FOUND,
    }
    assert {one.interplay for one in found(CHANGES, seeds=1).values()} == {Interplay.ONE_SEED}
    assert INTERPLAY.keys() == set(Interplay) and len(set(INTERPLAY.values())) == len(Interplay)


def test_interactions_are_corrected_over_changes() -> None:
    values = sorted(p_value(one.contrast.differences) for one in found(CHANGES).values())
    adjusted = sorted(one.adjusted_p_value for one in found(CHANGES).values())
    assert adjusted[:2] == pytest.approx([3 * values[0], max(3 * values[0], 2 * values[1])])


def test_two_changes_have_one_interaction_which_is_tested_once() -> None:
    losses = {BASE: (7.0, 7.1), "a": (6.8, 6.91), "b": (6.9, 7.0), "all": (6.7, 6.82)}
    trials = {Trial(arm, seed): losses[arm][seed - 1] for arm in losses for seed in (1, 2)}
    for left_out, same in (("a", "b"), ("b", "a")):  # the stack without one is the other alone
        trials |= {Trial(f"all-without-{left_out}", seed): losses[same][seed - 1] for seed in (1, 2)}
    a, b = interactions_of(design(CHANGES[:2], 2), trials)
    assert a.contrast.differences == pytest.approx(b.contrast.differences)
    assert a.adjusted_p_value == p_value(a.contrast.differences)


def test_ablation_without_a_stack_has_no_interactions() -> None:
    plain = Design("demo-modern", (), (Arm(BASE), Arm("all", ("model.qk_norm=true",)), CHANGES[0]), (1,), None, 1)
    assert not stack_without(plain) and interactions_of(plain, {}) == ()


def test_report_of_an_ablation_reads_like_the_golden_file(tmp_path: Path) -> None:
    whole = design(CHANGES)
    losses = {**LOSSES, "a-a": (7.02, 7.06, 6.93)}
    effects = []
    for arm in whole.arms[1:]:
        by_seed = differences(losses[arm.name], LOSSES[BASE]).differences
        p = p_value(by_seed)
        share = 0.62 if by_seed[0] < -0.05 else None
        effects.append(Effect(arm.name, losses[arm.name], by_seed, "", p, min(1.0, 8 * p), share, 1.25, 1.0))
    interactions = tuple(found(CHANGES).values())
    markdown, html = write_page(tmp_path, Results(whole, tuple(effects), LOSSES[BASE], {}, 0.01, interactions))
    assert_golden("ablation.md", markdown.read_text(encoding="utf-8"))
    assert "Inside the stack" in html.read_text(encoding="utf-8")


def test_equal_effects_alone_and_inside_are_said_in_one_sentence() -> None:
    (line,) = interplay_lines([found(CHANGES)["c"]])
    assert "c" not in line.split()
