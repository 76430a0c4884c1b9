"""Multiple-choice questions packed into rows of tokens: the shared prefix once, then each choice as a segment.

B rows, T positions. `tests/tasks/test_packing.py` has an example by hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from regpt.data.tokenizer import GPT2_TOKENIZER, Tokenizer, Tokens

MIN_FILL = 0.9  # length of the shortest question in a group, relative to the longest


@dataclass(frozen=True)
class Question:
    """An item in tokens: for each choice, its context and its own tokens."""

    contexts: tuple[Tokens, ...]
    choices: tuple[Tokens, ...]
    truncated: bool = False  # whether the contexts lost their start, because a model's block is too short


@dataclass(frozen=True)
class Packed:
    """A question as one row: the prefix that its sequences share, then the rest of each, without its last token.

    The loss of target n, a token of choice `choice_index[n]`, is computed at position `target_positions[n]`.
    """

    tokens: Tokens  # (T)
    positions: Tokens  # (T), of each token in its own sequence
    segments: Tokens  # (T), 0 in the prefix, then 1, 2 … for the choices
    target_positions: Tokens  # (targets)
    targets: Tokens  # (targets)
    choice_index: Tokens  # (targets)

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Rows:
    """Several packed questions, padded to one length."""

    numbers: tuple[int, ...]  # of the questions
    tokens: Tokens  # (B, T)
    positions: Tokens  # (B, T)
    segments: Tokens  # (B, T), -1 in the padding
    target_positions: Tokens  # (targets), in the flattened rows
    targets: Tokens  # (targets)
    questions: Tokens  # (targets), number of its question
    choice_index: Tokens  # (targets)


def tokenize_separately(
    contexts: Sequence[str], choices: Sequence[str], tokenizer: Tokenizer = GPT2_TOKENIZER
) -> Question:
    """Tokenize context and choice each by itself, as build-nanogpt does with GPT-2's tokens.

    A tokenizer that puts a token of its own before a choice that stands alone gets context and choice as one text.
    """
    if not tokenizer.encodes_alone:
        return tokenize_together(contexts, choices, tokenizer)
    context_tokens = {text: tokenizer.context(text) for text in contexts}
    return Question(tuple(context_tokens[text] for text in contexts), tuple(tokenizer.tokens(text) for text in choices))


def tokenize_together(
    contexts: Sequence[str], choices: Sequence[str], tokenizer: Tokenizer = GPT2_TOKENIZER
) -> Question:
    """Tokenize context and choice as one text and split it where the context's own tokens would end, as lm-eval does.

    Spaces at the end of a context belong to the choice, because GPT-2's tokens start with their space.
    """
    context_tokens, choice_tokens = [], []
    for context, choice in zip(contexts, choices, strict=True):
        n_context = len(tokenizer.tokens(context.rstrip()))
        context_tokens.append(tokenizer.context(context.rstrip()))
        choice_tokens.append(tokenizer.tokens(context + choice)[n_context:])
    return Question(tuple(context_tokens), tuple(choice_tokens))


def truncate_left(question: Question, block_size: int) -> Question:
    """Return the question with no sequence longer than a model's block: all contexts lose the same number of tokens.

    At least one token of context is kept. A choice that still does not fit loses its end.
    """
    choices = tuple(choice[:block_size] for choice in question.choices)
    # the last token of a sequence is only predicted, never read
    lengths = [len(context) + len(choice) - 1 for context, choice in zip(question.contexts, choices, strict=True)]
    excess = max(lengths) - block_size
    if excess <= 0:
        return question
    contexts = tuple(context[min(excess, len(context) - 1) :] for context in question.contexts)
    return Question(contexts, choices, truncated=True)


def pack(question: Question) -> Packed:
    """Pack a question into one row."""
    prefix = shared_prefix_length(question.contexts)
    tokens, positions = [question.contexts[0][:prefix]], [np.arange(prefix)]
    segments = [np.zeros(prefix, dtype=np.int64)]
    target_positions, targets, choice_index = [], [], []
    length = prefix
    for number, (context, choice) in enumerate(zip(question.contexts, question.choices, strict=True)):
        segment = np.concatenate([context[prefix:], choice[:-1]])
        tokens.append(segment)
        positions.append(np.arange(prefix, prefix + len(segment)))
        segments.append(np.full(len(segment), number + 1))
        # Each token of a choice is predicted by the one before it; for the first that may be the last of the prefix.
        before = np.arange(len(context) - 1, len(context) - 1 + len(choice))
        target_positions.append(np.where(before < prefix, before, before + length - prefix))
        targets.append(choice)
        choice_index.append(np.full(len(choice), number))
        length += len(segment)
    parts = (tokens, positions, segments, target_positions, targets, choice_index)
    return Packed(*(np.concatenate(part).astype(np.int64) for part in parts))


def shared_prefix_length(contexts: Sequence[Tokens]) -> int:
    """Return the number of tokens that all contexts start with."""
    shortest = min(len(context) for context in contexts)
    rows = np.stack([context[:shortest] for context in contexts])
    differs = (rows != rows[0]).any(axis=0)
    return int(differs.argmax()) if differs.any() else shortest


def group_rows(questions: Sequence[Packed], max_tokens: int) -> list[Rows]:
    """Group all questions by length, the longest first. A group has at most `max_tokens` tokens, or one question."""
    by_length = sorted(range(len(questions)), key=lambda number: (-len(questions[number]), number))
    groups: list[list[int]] = []
    longest = 0
    for number in by_length:
        length = len(questions[number])
        if not groups or (len(groups[-1]) + 1) * longest > max_tokens or length < MIN_FILL * longest:
            groups.append([])
            longest = length
        groups[-1].append(number)
    return [stack_rows([questions[number] for number in group], group) for group in groups]


def stack_rows(questions: Sequence[Packed], numbers: Sequence[int]) -> Rows:
    """Pad questions to one length; `numbers` are theirs in the whole list."""
    B, T = len(questions), max(len(question) for question in questions)
    tokens, positions = np.zeros((B, T), dtype=np.int64), np.zeros((B, T), dtype=np.int64)
    segments = np.full((B, T), -1, dtype=np.int64)
    for row, question in enumerate(questions):
        tokens[row, : len(question)] = question.tokens
        positions[row, : len(question)] = question.positions
        segments[row, : len(question)] = question.segments
    return Rows(
        numbers=tuple(numbers),
        tokens=tokens,
        positions=positions,
        segments=segments,
        target_positions=np.concatenate(
            [row * T + question.target_positions for row, question in enumerate(questions)]
        ),
        targets=np.concatenate([question.targets for question in questions]),
        questions=np.repeat(np.asarray(numbers), [len(question.targets) for question in questions]),
        choice_index=np.concatenate([question.choice_index for question in questions]),
    )
