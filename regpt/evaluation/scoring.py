"""Score multiple-choice questions: the loss of each choice under a model, and predictions from these losses."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regpt.data.tokenizer import GPT2_TOKENIZER, Tokenizer
from regpt.distributed.rank_group import RankGroup
from regpt.evaluation.sharding import ReportProgress, ignore_progress, shares_of_rank
from regpt.machine.device import Device
from regpt.model.evaluation_mode import evaluation_mode
from regpt.model.gpt import GPT
from regpt.model.masks import SharedPrefix
from regpt.recipe.recipe import Recipe
from regpt.tasks.items import Items
from regpt.tasks.packing import Question, Rows, group_rows, pack, tokenize_separately, tokenize_together, truncate_left
from regpt.tracking.predictions import Predictions

# On a CPU larger groups are no faster, and take more memory (docs/log.md, 2026-11-24).
MAX_TOKENS_ON_CPU = 1024
MAX_TOKENS = 65_536  # on other devices, for models with a long block


def max_batch_tokens(recipe: Recipe, device: Device) -> int:
    """Return the largest number of tokens in a group of questions.

    A training step's micro-batch fits into memory, so as many tokens fit here, where no backward pass follows.
    """
    micro_batch = recipe.data.micro_batch * recipe.model.block_size
    return min(micro_batch, MAX_TOKENS_ON_CPU if device.torch_device.type == "cpu" else MAX_TOKENS)


def tokenize_items(items: Items, tokenizer: Tokenizer = GPT2_TOKENIZER) -> list[Question]:
    """Tokenize the items of a task."""
    tokenize = tokenize_separately if items.task.separate_tokenization else tokenize_together
    return [tokenize(item.contexts, item.choices, tokenizer) for item in items.items]


class PackedQuestions:
    """Questions prepared for models of one block size: truncated to it, packed into rows, grouped into batches."""

    def __init__(self, questions: Sequence[Question], block_size: int, max_tokens: int) -> None:
        """`max_tokens` limits a group; a question that is longer is a group by itself."""
        self.questions = [truncate_left(question, block_size) for question in questions]
        self.groups = group_rows([pack(question) for question in self.questions], max_tokens)


class PackedTask(PackedQuestions):
    """The items of a task, prepared for models of one block size."""

    def __init__(self, items: Items, block_size: int, max_tokens: int, tokenizer: Tokenizer = GPT2_TOKENIZER) -> None:
        self.items = items
        super().__init__(tokenize_items(items, tokenizer), block_size, max_tokens)


def make_predictions(task: PackedTask, losses: NDArray[np.float64]) -> Predictions:
    """Return the predictions of a task with everything that any metric needs.  losses: (questions, choices)"""
    items, questions, shape = task.items, task.questions, losses.shape
    tokens, size, characters = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    for row, (item, question) in enumerate(zip(items.items, questions, strict=True)):
        count = len(item.choices)
        tokens[row, :count] = [len(choice) for choice in question.choices]
        texts = [choice.removeprefix(" ") for choice in item.choices]  # the space separates context and choice
        size[row, :count] = [len(text.encode()) for text in texts]
        characters[row, :count] = [len(text) for text in texts]
    return Predictions(
        task=items.task.name,
        description=items.description,
        digest=items.digest,
        dataset_size=items.dataset_size,
        published=items.published,
        truncated=sum(question.truncated for question in questions),
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
    questions: PackedQuestions,
    device: Device,
    progress: ReportProgress = ignore_progress,
    ranks: RankGroup | None = None,
) -> NDArray[np.float64]:
    """Return the summed loss of every choice, nats; inf where a question has fewer choices.  (questions, choices)

    Groups of questions are dealt to the ranks in turn; the groups are the same for any number of ranks. Every rank
    calls `progress(done, total)` before each of its groups; it may raise to stop. No random number is drawn, and the
    model is not changed.
    """

    def losses(rows: Rows, prefix: SharedPrefix) -> Tensor:
        return model.losses_at(
            to_device(device, rows.tokens),
            prefix,
            to_device(device, rows.target_positions),
            to_device(device, rows.targets),
        )[None]

    return sum_by_choice(model, losses, 1, questions, device, progress, ranks or RankGroup())[0]


def choice_losses_and_greedy(
    model: GPT,
    questions: PackedQuestions,
    device: Device,
    progress: ReportProgress = ignore_progress,
    ranks: RankGroup | None = None,
) -> NDArray[np.float64]:
    """Return the summed losses and the number of tokens that greedy decoding would not choose.

    (2, questions, choices)
    """

    def losses_and_misses(rows: Rows, prefix: SharedPrefix) -> Tensor:
        losses, is_best = model.losses_and_best_at(
            to_device(device, rows.tokens),
            prefix,
            to_device(device, rows.target_positions),
            to_device(device, rows.targets),
        )
        return torch.stack([losses, (~is_best).to(losses.dtype)])

    return sum_by_choice(model, losses_and_misses, 2, questions, device, progress, ranks or RankGroup())


def sum_by_choice(
    model: GPT,
    score: Callable[[Rows, SharedPrefix], Tensor],
    count: int,
    packed: PackedQuestions,
    device: Device,
    progress: ReportProgress,
    ranks: RankGroup,
) -> NDArray[np.float64]:
    """Sum `count` figures of every target token by choice.  score: rows -> (count, targets)

    -> (count, questions, choices)
    """
    questions, groups = packed.questions, packed.groups
    shares = shares_of_rank(len(groups), ranks)
    sums = np.zeros((count, len(questions), max(len(question.choices) for question in questions)))
    with evaluation_mode(model), device.shared_casts():
        for turn, (piece, is_repeat) in enumerate(shares):
            progress(turn, len(shares))
            rows = groups[piece]
            prefix = SharedPrefix(to_device(device, rows.positions), to_device(device, rows.segments))
            figures = score(rows, prefix)
            if not is_repeat:
                for total, values in zip(sums, figures.cpu().double().numpy(), strict=True):
                    np.add.at(total, (rows.questions, rows.choice_index), values)
    # Every question belongs to one rank and is zero on the others, so the order of this sum does not matter.
    sums = ranks.all_gather(sums).sum(axis=0)
    for row, question in enumerate(questions):
        sums[:, row, len(question.choices) :] = np.inf
    return sums


def to_device(device: Device, array: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(array).to(device.torch_device)
