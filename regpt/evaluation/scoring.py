"""Questions to answers: each ending's loss under a model, and which ending it finds likeliest."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regpt.base.recipe import Recipe
from regpt.data.items import Items
from regpt.data.packing import (
    GPT2,
    Question,
    Rows,
    Vocabulary,
    fitted,
    in_rows,
    packed,
    question_apart,
    question_together,
)
from regpt.model.gpt import GPT, Fork
from regpt.run.answers import Answers
from regpt.run.devices import Device
from regpt.run.ranks import Ranks

Between = Callable[[int, int], None]


# On a CPU larger groups are no faster, and take more memory (docs/log.md, 2026-11-24).
TOKENS_ON_CPU = 1024
MOST_TOKENS = 65_536  # elsewhere, for models with long blocks


def tokens_at_a_time(recipe: Recipe, device: Device) -> int:
    """What fits a training step's micro-batch fits here too, where nothing is kept for a backward pass."""
    fits = recipe.data.micro_batch * recipe.model.block_size
    return min(fits, TOKENS_ON_CPU if device.place.type == "cpu" else MOST_TOKENS)


def questions_of(items: Items, vocabulary: Vocabulary = GPT2) -> list[Question]:
    """A task's items in tokens."""
    question = question_apart if items.task.apart else question_together
    return [question(item.contexts, item.endings, vocabulary) for item in items.items]


class Paper:
    """Questions made ready for one model: none longer than its block, packed, grouped. Made once, asked often."""

    def __init__(self, questions: Sequence[Question], block_size: int, most_tokens: int) -> None:
        self.questions = [fitted(question, block_size) for question in questions]
        self.groups = in_rows([packed(question) for question in self.questions], most_tokens)


class Exam(Paper):
    """A task's items, made ready."""

    def __init__(self, items: Items, block_size: int, most_tokens: int, vocabulary: Vocabulary = GPT2) -> None:
        self.items = items
        super().__init__(questions_of(items, vocabulary), block_size, most_tokens)


def answered(exam: Exam, losses: NDArray[np.float64]) -> Answers:
    """What came out, with all that is needed to judge it by any rule."""
    items, questions, shape = exam.items, exam.questions, losses.shape
    tokens, size, characters = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    for row, (item, question) in enumerate(zip(items.items, questions, strict=True)):
        count = len(item.endings)
        tokens[row, :count] = [len(ending) for ending in question.endings]
        texts = [ending.removeprefix(" ") for ending in item.endings]  # the space is the question's, not the ending's
        size[row, :count] = [len(text.encode()) for text in texts]
        characters[row, :count] = [len(text) for text in texts]
    return Answers(
        task=items.task.name,
        items=items.in_words,
        digest=items.digest,
        of=items.of,
        published=items.published,
        cut=sum(question.is_cut for question in questions),
        numbers=np.array([item.number for item in items.items]),
        kinds=tuple(item.kind for item in items.items),
        labels=np.array([item.label for item in items.items]),
        losses=losses,
        tokens=tokens,
        bytes=size,
        characters=characters,
    )


def ending_losses(
    model: GPT,
    paper: Paper,
    device: Device,
    between: Between = lambda done, of: None,
    ranks: Ranks | None = None,
) -> NDArray[np.float64]:
    """Summed loss of every ending, nats; infinite where a question has fewer endings than others.  (questions, endings)

    Groups of questions are dealt to the ranks in turn; the groups are the same however many ranks there are.
    `between(done, of)` is called on every rank before each of its groups; it may raise to stop. No random number is
    drawn, and nothing of the model is changed.
    """

    def losses_of(rows: Rows, fork: Fork) -> Tensor:
        return model.losses_at(on(device, rows.tokens), fork, on(device, rows.places), on(device, rows.targets))[None]

    return summed(model, losses_of, 1, paper, device, between, ranks or Ranks())[0]


def endings_judged(
    model: GPT,
    paper: Paper,
    device: Device,
    between: Between = lambda done, of: None,
    ranks: Ranks | None = None,
) -> NDArray[np.float64]:
    """The same, and how many of an ending's tokens are not the likeliest at their place.  (2, questions, endings)"""

    def losses_and_others(rows: Rows, fork: Fork) -> Tensor:
        given = (on(device, rows.tokens), fork, on(device, rows.places), on(device, rows.targets))
        losses, best = model.losses_and_best_at(*given)
        return torch.stack([losses, (~best).to(losses.dtype)])

    return summed(model, losses_and_others, 2, paper, device, between, ranks or Ranks())


def summed(
    model: GPT,
    figures: Callable[[Rows, Fork], Tensor],
    count: int,
    paper: Paper,
    device: Device,
    between: Between,
    ranks: Ranks,
) -> NDArray[np.float64]:
    """Figures of target tokens, added up by ending.  (rows) -> (count, targets); -> (count, questions, endings)"""
    questions, groups = paper.questions, paper.groups
    rounds = -(-len(groups) // ranks.count)
    sums = np.zeros((count, len(questions), max(len(question.endings) for question in questions)))
    training = model.training
    model.eval()
    try:
        for turn in range(rounds):
            between(turn, rounds)
            number = turn * ranks.count + ranks.rank
            # where nothing is left, the last one again: a sharded model gathers its weights from everybody
            rows = groups[min(number, len(groups) - 1)]
            with device.autocast():
                found = figures(rows, Fork(on(device, rows.positions), on(device, rows.branches)))
            if number < len(groups):
                for kind, values in enumerate(found.cpu().double().numpy()):
                    np.add.at(sums[kind], (rows.questions, rows.owners), values)
    finally:
        model.train(training)
    sums = ranks.gathered(sums).sum(axis=0)  # every question was somebody's, and is zero with the others
    for row, question in enumerate(questions):
        sums[:, row, len(question.endings) :] = np.inf
    return sums


def on(device: Device, array: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(array).to(device.place)
