"""Synthetic tokens in the place of a dataset: windows for training and validation, and multiple-choice questions."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from regpt.data.tokenizer import VOCABULARY
from regpt.recipe.architecture import ModelRecipe
from regpt.tasks.packing import Question

POOL = 1 << 20  # tokens that windows are cut from
WINDOWS = 1 << 30
SEED = 1
# A HellaSwag item of average size (plan/workload.py): 178 positions, 127 targets.
CONTEXT_TOKENS, CHOICE_TOKENS = 55, (32, 32, 32, 31)


class SyntheticWindows:
    """Windows of random tokens, as frequent as words are: the n-th most frequent one with weight 1 / (n + 2.7).

    Source of the weights: Zipf's law with Mandelbrot's offset. Frequent tokens share rows of the embedding, as in text.
    """

    def __init__(self, model: ModelRecipe) -> None:
        self.block_size = model.block_size
        self.pool = random_tokens(POOL + model.block_size + 1, min(VOCABULARY, model.vocab_size))

    def __len__(self) -> int:
        return WINDOWS

    def rows(self, windows: Sequence[int] | NDArray[np.integer]) -> NDArray[np.uint16]:
        """Return the tokens of windows.  (windows) -> (windows, block_size + 1)"""
        first = np.asarray(windows, dtype=np.int64) * self.block_size % POOL
        return self.pool[first[:, None] + np.arange(self.block_size + 1)]

    def counted(self, windows: Sequence[int] | NDArray[np.integer]) -> None:
        """Return None: all targets count."""


@cache
def random_tokens(count: int, vocabulary: int) -> NDArray[np.uint16]:
    """Draw tokens below `vocabulary`, the same ones in every call. The array must not be changed."""
    shares = np.cumsum(1 / (np.arange(vocabulary) + 2.7))
    drawn = np.random.default_rng(SEED).random(count) * shares[-1]
    return np.minimum(np.searchsorted(shares, drawn), vocabulary - 1).astype(np.uint16)


def synthetic_questions(count: int, vocabulary: int) -> list[Question]:
    """Return questions of HellaSwag's average size, with random tokens."""
    lengths = (CONTEXT_TOKENS, *CHOICE_TOKENS)
    rows = random_tokens(count * sum(lengths), vocabulary).astype(np.int64).reshape(count, sum(lengths))
    questions = []
    for row in rows:
        context, *choices = np.split(row, np.cumsum(lengths)[:-1])
        questions.append(Question((context,) * len(choices), tuple(choices)))
    return questions
