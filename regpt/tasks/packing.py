"""Questions as rows of tokens that fork: a context once, and behind it each ending as a branch of its own.

B rows, T positions. `tests/data/test_packing.py` draws one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from regpt.data.tokenizer import GPT2_TOKENIZER, Tokenizer, Tokens

FULL = 0.9  # the shortest question of a group has this share of the longest one's length at least


@dataclass(frozen=True)
class Question:
    """An item in tokens: the context of each ending, and each ending."""

    contexts: tuple[Tokens, ...]
    choices: tuple[Tokens, ...]
    truncated: bool = False  # whether the beginning was left out, because a model's block is too short


@dataclass(frozen=True)
class Packed:
    """A question as one row: the stem that its sequences share, then each one's rest, without its last token.

    The loss of target n, a token of ending `owners[n]`, is read off at position `places[n]`.
    """

    tokens: Tokens  # (T)
    positions: Tokens  # (T), of each token in its own sequence
    segments: Tokens  # (T), 0 in the stem, then 1, 2 …
    target_positions: Tokens  # (targets)
    targets: Tokens  # (targets)
    choice_index: Tokens  # (targets)

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Rows:
    """Several packed questions, filled up to one length."""

    numbers: tuple[int, ...]  # of the questions
    tokens: Tokens  # (B, T)
    positions: Tokens  # (B, T)
    segments: Tokens  # (B, T), -1 where nothing is
    target_positions: Tokens  # (targets), in the flattened rows
    targets: Tokens  # (targets)
    questions: Tokens  # (targets): whose each is
    choice_index: Tokens  # (targets): of which ending


def tokenize_separately(
    contexts: Sequence[str], endings: Sequence[str], vocabulary: Tokenizer = GPT2_TOKENIZER
) -> Question:
    """Context and ending become tokens each by itself, as build-nanogpt does it."""
    known = {text: vocabulary.context(text) for text in contexts}
    return Question(tuple(known[text] for text in contexts), tuple(vocabulary.tokens(text) for text in endings))


def tokenize_together(
    contexts: Sequence[str], endings: Sequence[str], vocabulary: Tokenizer = GPT2_TOKENIZER
) -> Question:
    """Both become tokens together and are cut where the context's own would end, as lm-eval does it.

    Spaces at the end of a context belong to the ending, because GPT-2's tokens begin with their space.
    """
    befores, afters = [], []
    for context, ending in zip(contexts, endings, strict=True):
        head = vocabulary.tokens(context.rstrip())
        befores.append(vocabulary.context(context.rstrip()))
        afters.append(vocabulary.tokens(context + ending)[len(head) :])
    return Question(tuple(befores), tuple(afters))


def truncate_left(question: Question, block_size: int) -> Question:
    """The question with no sequence longer than a model's block: all contexts lose as much of their beginning.

    One token of context is left, and of an ending that still does not fit the beginning.
    """
    endings = tuple(ending[:block_size] for ending in question.choices)
    # the last token of a sequence is only predicted, never read
    lengths = [len(c) + len(e) - 1 for c, e in zip(question.contexts, endings, strict=True)]
    excess = max(lengths) - block_size
    if excess <= 0:
        return question
    contexts = tuple(context[min(excess, len(context) - 1) :] for context in question.contexts)
    return Question(contexts, endings, truncated=True)


def pack(question: Question) -> Packed:
    stem = shared_prefix_length(question.contexts)
    tokens, positions, branches = [question.contexts[0][:stem]], [np.arange(stem)], [np.zeros(stem, dtype=np.int64)]
    places, targets, owners = [], [], []
    length = stem
    for number, (context, ending) in enumerate(zip(question.contexts, question.choices, strict=True)):
        branch = np.concatenate([context[stem:], ending[:-1]])
        tokens.append(branch)
        positions.append(np.arange(stem, stem + len(branch)))
        branches.append(np.full(len(branch), number + 1))
        # each ending token is predicted by the one before it, which for the first may be the last of the stem
        before = np.arange(len(context) - 1, len(context) - 1 + len(ending))
        places.append(np.where(before < stem, before, before + length - stem))
        targets.append(ending)
        owners.append(np.full(len(ending), number))
        length += len(branch)
    parts = (tokens, positions, branches, places, targets, owners)
    return Packed(*(np.concatenate(part).astype(np.int64) for part in parts))


def shared_prefix_length(contexts: Sequence[Tokens]) -> int:
    """How many tokens all contexts begin with."""
    shortest = min(len(context) for context in contexts)
    rows = np.stack([context[:shortest] for context in contexts])
    differs = (rows != rows[0]).any(axis=0)
    return int(differs.argmax()) if differs.any() else shortest


def group_rows(questions: Sequence[Packed], most_tokens: int) -> list[Rows]:
    """All questions, grouped by their length, the longest first; no group larger than so many tokens if it can be."""
    by_length = sorted(range(len(questions)), key=lambda number: (-len(questions[number]), number))
    groups: list[list[int]] = []
    longest = 0
    for number in by_length:
        length = len(questions[number])
        if not groups or (len(groups[-1]) + 1) * longest > most_tokens or length < FULL * longest:
            groups.append([])
            longest = length
        groups[-1].append(number)
    return [stack_rows([questions[number] for number in group], group) for group in groups]


def stack_rows(questions: Sequence[Packed], numbers: Sequence[int]) -> Rows:
    B, T = len(questions), max(len(question) for question in questions)
    tokens, positions = np.zeros((B, T), dtype=np.int64), np.zeros((B, T), dtype=np.int64)
    branches = np.full((B, T), -1, dtype=np.int64)
    for row, question in enumerate(questions):
        tokens[row, : len(question)] = question.tokens
        positions[row, : len(question)] = question.positions
        branches[row, : len(question)] = question.segments
    return Rows(
        numbers=tuple(numbers),
        tokens=tokens,
        positions=positions,
        segments=branches,
        target_positions=np.concatenate(
            [row * T + question.target_positions for row, question in enumerate(questions)]
        ),
        targets=np.concatenate([question.targets for question in questions]),
        questions=np.repeat(np.asarray(numbers), [len(question.targets) for question in questions]),
        choice_index=np.concatenate([question.choice_index for question in questions]),
    )
