"""Questions to answers: each ending's loss under a model, and which ending it finds likeliest."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regpt.base.recipe import Recipe
from regpt.data.tokenizer import GPT2_TOKENIZER, Tokenizer
from regpt.distributed.device import Device
from regpt.distributed.ranks import RankGroup
from regpt.model.gpt import GPT, SharedPrefix
from regpt.tasks.items import Items
from regpt.tasks.packing import Question, Rows, group_rows, pack, tokenize_separately, tokenize_together, truncate_left
from regpt.tracking.predictions import Predictions

Between = Callable[[int, int], None]


# On a CPU larger groups are no faster, and take more memory (docs/log.md, 2026-11-24).
TOKENS_ON_CPU = 1024
MOST_TOKENS = 65_536  # elsewhere, for models with long blocks


def max_batch_tokens(recipe: Recipe, device: Device) -> int:
    """What fits a training step's micro-batch fits here too, where nothing is kept for a backward pass."""
    fits = recipe.data.micro_batch * recipe.model.block_size
    return min(fits, TOKENS_ON_CPU if device.torch_device.type == "cpu" else MOST_TOKENS)


def tokenize_items(items: Items, vocabulary: Tokenizer = GPT2_TOKENIZER) -> list[Question]:
    """A task's items in tokens."""
    question = tokenize_separately if items.task.separate_tokenization else tokenize_together
    return [question(item.contexts, item.choices, vocabulary) for item in items.items]


class PackedQuestions:
    """Questions made ready for one model: none longer than its block, packed, grouped. Made once, asked often."""

    def __init__(self, questions: Sequence[Question], block_size: int, most_tokens: int) -> None:
        self.questions = [truncate_left(question, block_size) for question in questions]
        self.groups = group_rows([pack(question) for question in self.questions], most_tokens)


class PackedTask(PackedQuestions):
    """A task's items, made ready."""

    def __init__(self, items: Items, block_size: int, most_tokens: int, vocabulary: Tokenizer = GPT2_TOKENIZER) -> None:
        self.items = items
        super().__init__(tokenize_items(items, vocabulary), block_size, most_tokens)


def make_predictions(exam: PackedTask, losses: NDArray[np.float64]) -> Predictions:
    """What came out, with all that is needed to judge it by any rule."""
    items, questions, shape = exam.items, exam.questions, losses.shape
    tokens, size, characters = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    for row, (item, question) in enumerate(zip(items.items, questions, strict=True)):
        count = len(item.choices)
        tokens[row, :count] = [len(ending) for ending in question.choices]
        texts = [ending.removeprefix(" ") for ending in item.choices]  # the space is the question's, not the ending's
        size[row, :count] = [len(text.encode()) for text in texts]
        characters[row, :count] = [len(text) for text in texts]
    return Predictions(
        task=items.task.name,
        items=items.description,
        digest=items.digest,
        of=items.dataset_size,
        published=items.published,
        cut=sum(question.truncated for question in questions),
        numbers=np.array([item.number for item in items.items]),
        kinds=tuple(item.kind for item in items.items),
        labels=np.array([item.label for item in items.items]),
        losses=losses,
        tokens=tokens,
        bytes=size,
        characters=characters,
    )


def choice_losses(
    model: GPT,
    paper: PackedQuestions,
    device: Device,
    between: Between = lambda done, of: None,
    ranks: RankGroup | None = None,
) -> NDArray[np.float64]:
    """Summed loss of every ending, nats; infinite where a question has fewer endings than others.  (questions, endings)

    Groups of questions are dealt to the ranks in turn; the groups are the same however many ranks there are.
    `between(done, of)` is called on every rank before each of its groups; it may raise to stop. No random number is
    drawn, and nothing of the model is changed.
    """

    def losses_of(rows: Rows, fork: SharedPrefix) -> Tensor:
        return model.losses_at(
            to_device(device, rows.tokens),
            fork,
            to_device(device, rows.target_positions),
            to_device(device, rows.targets),
        )[None]

    return sum_by_choice(model, losses_of, 1, paper, device, between, ranks or RankGroup())[0]


def choice_losses_and_greedy(
    model: GPT,
    paper: PackedQuestions,
    device: Device,
    between: Between = lambda done, of: None,
    ranks: RankGroup | None = None,
) -> NDArray[np.float64]:
    """The same, and how many of an ending's tokens are not the likeliest at their place.  (2, questions, endings)"""

    def losses_and_others(rows: Rows, fork: SharedPrefix) -> Tensor:
        given = (
            to_device(device, rows.tokens),
            fork,
            to_device(device, rows.target_positions),
            to_device(device, rows.targets),
        )
        losses, best = model.losses_and_best_at(*given)
        return torch.stack([losses, (~best).to(losses.dtype)])

    return sum_by_choice(model, losses_and_others, 2, paper, device, between, ranks or RankGroup())


def sum_by_choice(
    model: GPT,
    figures: Callable[[Rows, SharedPrefix], Tensor],
    count: int,
    paper: PackedQuestions,
    device: Device,
    between: Between,
    ranks: RankGroup,
) -> NDArray[np.float64]:
    """Figures of target tokens, added up by ending.  (rows) -> (count, targets); -> (count, questions, endings)"""
    questions, groups = paper.questions, paper.groups
    rounds = -(-len(groups) // ranks.size)
    sums = np.zeros((count, len(questions), max(len(question.choices) for question in questions)))
    training = model.training
    model.eval()
    try:
        for turn in range(rounds):
            between(turn, rounds)
            number = turn * ranks.size + ranks.rank
            # where nothing is left, the last one again: a sharded model gathers its weights from everybody
            rows = groups[min(number, len(groups) - 1)]
            with device.autocast():
                found = figures(rows, SharedPrefix(to_device(device, rows.positions), to_device(device, rows.segments)))
            if number < len(groups):
                for kind, values in enumerate(found.cpu().double().numpy()):
                    np.add.at(sums[kind], (rows.questions, rows.choice_index), values)
    finally:
        model.train(training)
    sums = ranks.all_gather(sums).sum(axis=0)  # every question was somebody's, and is zero with the others
    for row, question in enumerate(questions):
        sums[:, row, len(question.choices) :] = np.inf
    return sums


def to_device(device: Device, array: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(array).to(device.torch_device)
