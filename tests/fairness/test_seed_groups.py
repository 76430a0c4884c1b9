"""Which runs are one group, what is tested between groups, and which reasons against it are named."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from scipy import stats

from regpt.fairness.caveats import CaveatKind
from regpt.fairness.claims import Limit
from regpt.fairness.loading import load_models
from regpt.fairness.seed_claims import GroupComparison, caveats_of, compare_groups
from regpt.fairness.seed_groups import SeedGroup, seed_groups, tuning_runs
from regpt.stats.outcome import NotTested, Outcome
from regpt.stats.seeds import SeedsTest
from tests.helpers.compared_runs import edit_journal, edit_recipe
from tests.helpers.seeded_runs import BASE, FASTER, make_groups, make_run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    make_groups(tmp_path / "runs")
    return tmp_path / "runs"


def grouped(runs: Path, *names: str) -> list[SeedGroup]:
    return seed_groups(load_models(names or sorted(path.name for path in runs.iterdir()), runs))


def compared(runs: Path, *names: str) -> GroupComparison:
    (found,) = compare_groups(grouped(runs, *names))
    return found


def test_runs_of_one_recipe_are_one_group_in_the_order_of_their_seeds(runs: Path) -> None:
    edit_recipe(runs / "base-2", "threads = 1", "threads = 2")  # changes no result
    base, faster = grouped(runs, "base-3", "faster-2", "base-1", "faster-1", "faster-3", "base-2")
    assert (base.name, [model.name for model in base.members]) == ("base", ["base-1", "base-2", "base-3"])
    assert (faster.name, faster.seeds, faster.n_seeds) == ("faster", [(1,), (2,), (3,)], 3)


@pytest.mark.parametrize(
    "names", [("base-1", "faster-1"), ("base-1", "base-2", "base-3"), ("base-1", "base-2", "faster-1")]
)
def test_models_are_compared_one_by_one_unless_two_groups_have_two_seeds(runs: Path, names: Sequence[str]) -> None:
    assert grouped(runs, *names) == []


def test_copies_of_a_run_are_no_second_seed(runs: Path) -> None:
    for name in ("base-1", "faster-1"):
        shutil.copytree(runs / name, runs / f"{name}-copy")
    assert grouped(runs, "base-1", "base-1-copy", "faster-1", "faster-1-copy") == []
    found = compared(runs, "base-1", "base-1-copy", "base-2", "base-3", "faster-1", "faster-2", "faster-3")
    assert found.reference.n_seeds == 3 and found.loss == compared(runs, *sorted(plain(runs))).loss


def test_runs_that_share_a_data_order_count_once_with_their_mean(runs: Path) -> None:
    """As the base and the A/A arm of an ablation."""
    make_run(runs / "base-1-again", 1, 10.08, ("max_steps = 12", "max_steps = 12\nweights_seed = 5"))
    base, faster = grouped(runs)
    losses = [model.loss.loss for model in base.members if model.loss]
    assert len(losses) == 4 and base.by_seed(losses) == pytest.approx({(1,): 10.05, (2,): 10.04, (3,): 10.03})
    assert base.mean(losses) == pytest.approx(10.04) and (base.n_seeds, faster.n_seeds) == (3, 3)


def test_runs_that_tuned_a_setting_of_an_ablation_are_left_out(runs: Path) -> None:
    """The best of them has the recipe of its arm."""
    make_run(runs / "base-tune-1", 0, 9.99)
    models = load_models(sorted(path.name for path in runs.iterdir()), runs)
    assert [group.n_seeds for group in seed_groups(models)] == [4, 3] and tuning_runs(models) == []
    (runs.parent / "ablation.json").write_text(json.dumps({"seeds": [1, 2, 3]}), encoding="utf-8")
    assert [group.n_seeds for group in seed_groups(models)] == [3, 3]
    assert [model.name for model in tuning_runs(models)] == ["base-tune-1"]


def plain(runs: Path) -> list[str]:
    return [path.name for path in runs.iterdir() if not path.name.endswith("-copy")]


def test_groups_with_one_name_are_named_by_their_folders(tmp_path: Path) -> None:
    for folder, edits in (("A", ()), ("B", (("max_lr = 0.01", "max_lr = 0.02"),))):
        for seed in (1, 2):
            make_run(tmp_path / folder / f"seed-{seed}", seed, 10.0, *edits)
    paths = [str(tmp_path / folder / f"seed-{seed}") for folder in "AB" for seed in (1, 2)]
    assert [group.name for group in seed_groups(load_models(paths, tmp_path))] == ["A", "B"]


def test_seeds_of_the_weights_count_where_the_data_order_is_one(tmp_path: Path) -> None:
    for n, loss in enumerate(BASE, 1):
        make_run(tmp_path / f"base-{n}", 7, loss, ("max_steps = 12", f"max_steps = 12\nweights_seed = {n}"))
    make_run(tmp_path / "other-8", 8, 10.0, ("max_lr = 0.01", "max_lr = 0.02"))
    make_run(tmp_path / "other-9", 9, 10.0, ("max_lr = 0.01", "max_lr = 0.02"))
    base, other = grouped(tmp_path)
    assert base.seeds == [(7, 1), (7, 2), (7, 3)] and other.seeds == [(8,), (9,)]
    test = compared(tmp_path).loss.verdict.test
    assert isinstance(test, SeedsTest) and not test.is_paired


def test_loss_of_groups_with_the_same_seeds_is_tested_in_pairs(runs: Path) -> None:
    found = compared(runs, *(f"{arm}-{seed}" for arm in ("base", "faster") for seed in (1, 2, 3)))
    verdict, expected = found.loss.verdict, stats.ttest_rel(FASTER, BASE)
    assert isinstance(verdict.test, SeedsTest) and verdict.test.is_paired
    assert verdict.test.adjusted_p_value == pytest.approx(expected.pvalue)
    assert verdict.test.difference.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert (verdict.ours, verdict.theirs) == pytest.approx((sum(FASTER) / 3, sum(BASE) / 3))
    assert verdict.outcome is Outcome.LOWER and found.loss.is_about_recipes
    assert found.loss.limits == ()  # not one seed; and only learning rates differ


@pytest.mark.parametrize(
    ("changed", "old", "new"),
    [
        ("faster-3", "\nseed = 3\n", "\nseed = 4\n"),
        ("faster-*", 'order = "sequential"', 'order = "shuffled"'),
    ],
)
def test_losses_of_other_windows_are_tested_as_independent(runs: Path, changed: str, old: str, new: str) -> None:
    for run in runs.glob(changed):
        edit_recipe(run, old, new)
    verdict = compared(runs, *sorted(plain(runs))).loss.verdict
    assert isinstance(verdict.test, SeedsTest) and not verdict.test.is_paired
    expected = stats.ttest_ind(FASTER, BASE, equal_var=False)
    assert verdict.test.difference.mean / verdict.test.difference.error == pytest.approx(expected.statistic)


def test_every_group_is_compared_with_the_first_and_adjusted_for_their_number(runs: Path) -> None:
    for n, loss in enumerate((10.05, 10.02, 10.04), 1):
        make_run(runs / f"slower-{n}", n, loss, ("max_lr = 0.01", "max_lr = 0.005"))
    found = compare_groups(grouped(runs))
    assert [(one.group.name, one.reference.name) for one in found] == [("faster", "base"), ("slower", "base")]
    tests = [one.loss.verdict.test for one in found]
    first, second = (test for test in tests if isinstance(test, SeedsTest))
    assert first.adjusted_p_value == pytest.approx(2 * first.difference.p_value)
    assert second.adjusted_p_value == second.difference.p_value


def test_group_of_one_run_is_shown_and_not_tested(runs: Path) -> None:
    make_run(runs / "single", 1, 9.0, ("max_lr = 0.01", "max_lr = 0.03"))
    *_, single = compare_groups(grouped(runs))
    assert single.group.name == "single" and single.loss.verdict.reason is NotTested.TOO_FEW_SEEDS
    assert single.loss.verdict.ours == 9.0 and not single.loss.is_about_recipes


def test_loss_that_is_missing_or_infinite_is_not_tested(runs: Path) -> None:
    edit_journal(runs / "faster-2", lambda r: {**r, "loss": float("nan")} if r["kind"] == "validation" else r)
    assert compared(runs).loss.verdict.reason is NotTested.NOT_FINITE
    edit_journal(runs / "faster-2", lambda r: None if r["kind"] == "validation" else r)
    assert compared(runs).loss.verdict.reason is NotTested.NOT_MEASURED


def test_what_differs_between_groups_is_named_once_and_forbids_a_claim(runs: Path) -> None:
    for n in (1, 2, 3):
        edit_recipe(runs / f"faster-{n}", "total_batch_tokens = 256", "total_batch_tokens = 512")
    caveats = caveats_of(grouped(runs))
    (batch,) = [one for one in caveats if one.kind is CaveatKind.OTHER_BATCH]
    assert list(batch.values) == [("base", 256), ("faster", 512)]
    assert len({one.kind for one in caveats}) == len(caveats)
    assert batch in compared(runs).loss.caveats and not compared(runs).loss.is_about_recipes


def test_what_differs_within_a_group_is_named_by_run(runs: Path) -> None:
    edit_journal(runs / "faster-2", lambda r: None if r["kind"] == "step" and r["step"] > 10 else r)
    edit_journal(runs / "faster-2", lambda r: None if r["kind"] == "validation" and r["step"] > 10 else r)
    (unfinished,) = [one for one in caveats_of(grouped(runs)) if one.kind is CaveatKind.UNFINISHED]
    assert [name for name, _ in unfinished.values] == ["base", "faster-1", "faster-2", "faster-3"]


def test_last_losses_above_the_best_are_one_caveat(runs: Path) -> None:
    for n in (1, 2, 3):
        edit_journal(
            runs / f"faster-{n}", lambda r: {**r, "loss": 9.0} if (r["kind"], r["step"]) == ("validation", 8) else r
        )
    (above,) = [one for one in caveats_of(grouped(runs)) if one.kind is CaveatKind.LAST_ABOVE_BEST]
    assert [name for name, _ in above.values] == ["faster-1", "faster-2", "faster-3"]


def test_different_seeds_are_no_caveat_of_groups_and_one_rate_stays_a_limit(runs: Path) -> None:
    assert not caveats_of(grouped(runs))
    for n in (1, 2, 3):
        edit_recipe(runs / f"faster-{n}", "weight_decay = 0.1", "weight_decay = 0.2")
    assert compared(runs).loss.limits == (Limit.ONE_RATE,)
