"""The table of the miniatures: what it says about seeds, and the corpora it is made on."""

import json
from pathlib import Path

import pytest
from scipy import stats

from benchmarks.corpora import CORPORA, EMBEDDED, source_of
from benchmarks.miniatures import RECIPES, Trial, grid_table, interval, rate_settings
from regpt.recipe.settings import load_recipe


def test_interval_over_seeds_is_students() -> None:
    mean, half = interval([-0.05, -0.07, -0.06])
    low, high = stats.t.interval(0.95, 2, loc=-0.06, scale=stats.sem([-0.05, -0.07, -0.06]))
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert interval([-0.05]) == (-0.05, float("inf"))


def test_grid_marks_the_lowest_loss_of_each_corpus_and_recipe() -> None:
    losses = {
        Trial(recipe, "prose", seed, rate): 6.0 + rate * (1 if recipe == RECIPES[0] else -1) + seed
        for recipe in RECIPES
        for seed in (0, 2)
        for rate in (0.1, 0.2)
    }
    assert list(grid_table(losses, [0.1, 0.2]))[2:] == [
        "| prose | demo-classic | **7.100** | 7.200 |",
        "| prose | demo-modern | 6.900 | **6.800** |",
        "| prose | demo-next | 6.900 | **6.800** |",
    ]


def test_a_trials_rate_scales_every_learning_rate() -> None:
    recipe = load_recipe("demo-next")
    twice = load_recipe("demo-next", rate_settings(Trial("demo-next", "prose", 1, 2 * recipe.optimizer.max_lr)))
    assert [twice.optimizer.max_lr, twice.optimizer.min_lr, twice.optimizer.muon_lr, twice.optimizer.embedding_lr] == [
        2 * rate
        for rate in (
            recipe.optimizer.max_lr,
            recipe.optimizer.min_lr,
            recipe.optimizer.muon_lr,
            recipe.optimizer.embedding_lr,
        )
    ]
    assert not rate_settings(Trial("demo-next", "prose", 1))


def test_miniatures_differ_in_the_model_alone() -> None:
    """The comparison of `make demo` is fair: same text, order, batch and steps; for the first two the same rate."""
    classic, modern, newest = map(load_recipe, RECIPES)
    assert (classic.run, classic.data, classic.optimizer) == (modern.run, modern.data, modern.optimizer)
    assert classic.evaluation == modern.evaluation and classic.model != modern.model
    assert (newest.run, newest.data, newest.evaluation) == (modern.run, modern.data, modern.evaluation)


@pytest.mark.parametrize(("corpus", "documents"), [("prose", 5_151), ("encyclopedia", 2_938), ("dialogue", 499)])
def test_corpus_has_its_documents_once(corpus: str, documents: int, tmp_path: Path) -> None:
    path = Path(source_of(corpus, tmp_path))
    texts = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(texts) == len(set(texts)) == documents and all(map(str.strip, texts))


def test_code_is_the_embedded_corpus(tmp_path: Path) -> None:
    assert CORPORA[0] == "code" and source_of("code", tmp_path) == EMBEDDED and not list(tmp_path.iterdir())
