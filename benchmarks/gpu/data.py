"""Synthetic tokens that a model can learn from: Zipf's law, and a fixed successor for half of the tokens."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regpt.base.errors import DataError
from regpt.data.batches import Batch
from regpt.data.import_shards import find_shards, import_shards
from regpt.data.shards import Manifest, TokenWindows, read_manifest
from regpt.data.tokenizer import VOCABULARY
from regpt.evaluation.scoring import tokenize_items
from regpt.recipe.recipe import Recipe
from regpt.tasks.catalog import TASKS
from regpt.tasks.items import open_items
from regpt.tasks.packing import Question

FOLLOWS = 0.5  # probability that a token is the successor of the one before
HEAD_OF_ZIPF = 3.0  # added to ranks, so that the most frequent token has a share of a few percent
VALIDATION_TOKENS, TRAINING_TOKENS = 700_000, 2_000_000


def synthetic_tokens(count: int, vocabulary: int, seed: int) -> NDArray[np.int64]:
    """Draw tokens below `vocabulary`.  -> (count)

    RandomState's stream is the same in every version of numpy, and the reference losses depend on these tokens.
    """
    random = np.random.RandomState(seed)
    vocabulary = min(vocabulary, VOCABULARY)
    cumulative = np.cumsum(1.0 / (np.arange(vocabulary) + HEAD_OF_ZIPF))
    tokens = np.searchsorted(cumulative, random.random_sample(count) * cumulative[-1])
    follows = random.random_sample(count) < FOLLOWS
    follows[0] = False
    starts = np.maximum.accumulate(np.where(follows, 0, np.arange(count)))  # the last token that was drawn
    distance = np.arange(count) - starts
    for away in range(1, int(distance.max()) + 1):
        places = np.flatnonzero(distance == away)
        tokens[places] = (tokens[places - 1] * 31 + 7) % vocabulary
    return tokens


def synthetic_batches(recipe: Recipe, count: int, micro_batches: int, seed: int = 1) -> list[Batch]:
    """Return batches of `micro_batches` each, of the recipe's micro-batch and block size."""
    size, T = recipe.data.micro_batch, recipe.model.block_size
    tokens = synthetic_tokens(count * micro_batches * size * (T + 1), recipe.model.vocab_size, seed)
    rows = tokens.reshape(count, micro_batches, size, T + 1)
    numbers = np.arange(micro_batches)
    return [
        Batch(np.ascontiguousarray(one[..., :-1]), np.ascontiguousarray(one[..., 1:]), numbers, numbers, 0)
        for one in rows
    ]


def synthetic_dataset(folder: Path, vocabulary: int, share: float) -> Manifest:
    """Write a dataset of synthetic tokens, of a share of the full size."""
    folder.mkdir(parents=True)
    for name, count, seed in (("val", VALIDATION_TOKENS, 2), ("train", TRAINING_TOKENS, 3)):
        tokens = synthetic_tokens(int(share * count), vocabulary, seed)
        np.save(folder / f"{name}_000000.npy", tokens.astype("<u2"))
    return import_shards(folder, find_shards(folder), None)


def open_windows(folder: Path, block_size: int) -> TokenWindows:
    """Return the windows of a dataset's validation split."""
    return TokenWindows(folder, read_manifest(folder), "val", block_size)


def hellaswag_questions(count: int) -> list[Question]:
    """Return HellaSwag's questions, or `count` of them; an empty list without its items or GPT-2's vocabulary."""
    try:
        return tokenize_items(open_items(TASKS["hellaswag"], count=count))
    except DataError:
        return []


def synthetic_questions(count: int, vocabulary: int, longest: int, seed: int = 4) -> list[Question]:
    """Return questions with four choices, of lengths like HellaSwag's, at most `longest` tokens each."""
    return list(questions(np.random.RandomState(seed), count, vocabulary, longest))


def questions(random: np.random.RandomState, count: int, vocabulary: int, longest: int) -> Iterator[Question]:
    vocabulary = min(vocabulary, VOCABULARY)
    for _ in range(count):
        context = random.randint(0, vocabulary, random.randint(1 + longest // 8, 2 + longest // 2))
        lengths = random.randint(1 + longest // 16, 2 + longest // 3, 4)
        yield Question((context,) * 4, tuple(random.randint(0, vocabulary, length) for length in lengths))
