"""Synthetic tokens stand for a dataset: the same ones each time, as frequent as words, in questions of real size."""

from pathlib import Path

import numpy as np

from regpt.bench.synthetic import SyntheticWindows, random_tokens, synthetic_questions
from regpt.plan.workload import ITEM_POSITIONS, ITEM_TARGETS
from regpt.tasks.packing import pack
from tests.conftest import tiny_recipe


def test_synthetic_windows_follow_each_other_like_those_of_a_dataset() -> None:
    windows = SyntheticWindows(tiny_recipe(Path()).model)
    rows = windows.rows([0, 1, 2**29 + 5])
    assert rows.shape == (3, 33) and rows[0, -1] == rows[1, 0]
    assert np.array_equal(rows, SyntheticWindows(tiny_recipe(Path()).model).rows([0, 1, 2**29 + 5]))


def test_synthetic_tokens_are_as_frequent_as_words() -> None:
    tokens = random_tokens(200_000, 50_257)
    counts = np.bincount(tokens, minlength=50_257)
    assert len(counts) == 50_257 and counts[0] / counts[10:20].mean() > 4
    assert 0.3 < counts[:100].sum() / len(tokens) < 0.5


def test_synthetic_question_has_the_size_of_a_hellaswag_item() -> None:
    packed = [pack(question) for question in synthetic_questions(3, 1000)]
    assert {(len(one), len(one.targets)) for one in packed} == {(ITEM_POSITIONS, ITEM_TARGETS)}
