"""The page and the figures of groups of runs over seeds."""

from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
from matplotlib.figure import Figure

from regpt.comparison import figures
from regpt.comparison.seed_curves import mean_accuracies, mean_curve
from regpt.comparison.seed_tables import group_differences_table, mean_metrics_table, seeds_table
from regpt.fairness.loading import load_models
from regpt.fairness.models import ComparedModel
from regpt.fairness.seed_groups import SeedGroup, seed_groups
from tests.helpers.compared_runs import edit_journal, run_command
from tests.helpers.golden import assert_golden
from tests.helpers.seeded_runs import BASE, FASTER, make_groups


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[ComparedModel]:
    monkeypatch.chdir(tmp_path)
    return load_models(make_groups(Path("runs")), Path("runs"))


@pytest.fixture
def groups(models: list[ComparedModel]) -> list[SeedGroup]:
    return seed_groups(models)


def test_command_compares_two_groups(
    models: list[ComparedModel], undrawn_figures: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run_command(capsys, "compare", *(model.name for model in models))
    assert_golden("comparison-seeds.txt", out)
    assert_golden("comparison-seeds.md", Path("comparisons/base-vs-faster/comparison.md").read_text(encoding="utf-8"))


def test_tables_have_means_with_errors_over_seeds(groups: list[SeedGroup]) -> None:
    rows = {name: cells for name, *cells in mean_metrics_table(groups).rows}
    for cell, losses in zip(rows["Validation loss, last"], (BASE, FASTER), strict=True):
        assert cell == f"{fmean(losses):.4f} ± {stdev(losses) / 3**0.5:.4f}"
    assert rows["Seeds"] == ["3", "3"]
    assert seeds_table(groups).rows == [
        [str(n), f"{ours:.4f}", f"{theirs:.4f}"] for n, (ours, theirs) in enumerate(zip(BASE, FASTER, strict=True), 1)
    ]
    assert [row[0] for row in group_differences_table(groups).rows] == ["optimizer.max_lr"]


def test_mean_curve_has_the_range_of_the_seeds_as_its_band(
    groups: list[SeedGroup], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curves = [curve for group in groups if (curve := mean_curve(group))]
    last = curves[0].evaluations[-1]
    assert (last.loss, last.range) == (pytest.approx(fmean(BASE)), (min(BASE), max(BASE)))
    assert last.standard_error == pytest.approx(stdev(BASE) / 3**0.5)
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure))
    figures.draw_learning_curves(curves, "tokens", tmp_path / "loss.png")
    axes = drawn[0].axes[0]
    bands = [band.get_paths()[0].vertices for band in axes.collections]
    ends = [(band[band[:, 0] == band[:, 0].max()][:, 1].min(), band[:, 0].max()) for band in map(np.asarray, bands)]
    assert sorted(low for low, _ in ends) == [pytest.approx(min(FASTER)), pytest.approx(min(BASE))]
    assert figures.OVER_SEEDS in axes.texts[0].get_text()


def test_mean_curve_leaves_out_what_a_seed_lacks(groups: list[SeedGroup], models: list[ComparedModel]) -> None:
    whole = mean_curve(groups[0])
    edit_journal(models[1].path, lambda r: None if r["kind"] in ("step", "validation") and r["step"] == 8 else r)
    partial = mean_curve(seed_groups(load_models([model.name for model in models], Path("runs")))[0])
    assert whole and partial and len(partial.steps) == len(whole.steps) - 1
    assert {point.tokens for point in whole.evaluations} - {p.tokens for p in partial.evaluations} == {8 * 256}


def test_accuracies_are_averaged_over_runs_scored_on_the_same_items(groups: list[SeedGroup]) -> None:
    *_, (tokens, last) = mean_accuracies(groups[0])
    assert tokens == 12 * 256 and len(last) == 3
    edit_journal(groups[0].members[0].path, lambda r: {**r, "digest": "other"} if r["kind"] == "task" else r)
    other = seed_groups(load_models([m.name for group in groups for m in group.members], Path("runs")))[0]
    assert mean_accuracies(other) == []
