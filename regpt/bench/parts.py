"""Time the other parts of a run: a validation batch, a group of HellaSwag items, a sampled token, a checkpoint."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from regpt.base.errors import UserError
from regpt.bench.result import Checkpoint, Part, Parts
from regpt.bench.synthetic import SyntheticWindows, synthetic_questions
from regpt.checkpoint.saver import AsyncCheckpointer
from regpt.console.training import Console
from regpt.data.tokenizer import VOCABULARY
from regpt.evaluation.sampling import generate
from regpt.evaluation.scoring import PackedQuestions, choice_losses, max_batch_tokens
from regpt.evaluation.validation import text_bytes, validation
from regpt.generation.drawing import Sampling
from regpt.machine.device import Device
from regpt.machine.oom import is_out_of_memory, release_memory
from regpt.parallel.model import Parallel
from regpt.plan.workload import ITEM_POSITIONS
from regpt.recipe.recipe import Recipe
from regpt.training.checkpointing import TrainState

LONG_SECONDS = 5.0  # a part that takes longer is timed once
ROUNDS = 3
PROMPT_TOKENS, NEW_TOKENS = 8, 8


def time_parts(recipe: Recipe, parallel: Parallel, folder: Path, console: Console) -> Parts:
    """Time every part once or several times. A part that runs out of memory or cannot be written is None."""
    device = parallel.device

    def timed(name: str, make: Callable[[], Part]) -> Part | None:
        console.update_bar(name)
        try:
            return make()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            console.note(f"{name}: out of memory")
            release_memory(device.torch_device.type, device.compiled)
            return None

    return Parts(
        validation=timed("validation batch", lambda: time_validation(recipe, parallel)),
        tasks=timed("HellaSwag group", lambda: time_questions(recipe, parallel)),
        samples=timed("sampled token", lambda: time_sampling(recipe, parallel)),
        checkpoint=time_checkpoint(recipe, parallel, folder, console),
    )


def time_validation(recipe: Recipe, parallel: Parallel) -> Part:
    """Time the loss of one micro-batch of windows."""
    size, windows = recipe.data.micro_batch, SyntheticWindows(recipe.model)
    text_bytes(windows.rows([0]))  # loads the tokenizer, as a run does once
    one = replace(recipe, evaluation=replace(recipe.evaluation, validation_batches=1, validation_batch_size=size))
    with parallel.eval_mode() as model:
        return Part(size, seconds_of(lambda: validation(model, windows, one, parallel.device), parallel.device))


def time_questions(recipe: Recipe, parallel: Parallel) -> Part:
    """Time one group of questions of HellaSwag's average size."""
    most = max_batch_tokens(recipe, parallel.device)
    count = max(1, most // ITEM_POSITIONS)
    questions = synthetic_questions(count, min(VOCABULARY, recipe.model.vocab_size))
    packed = PackedQuestions(questions, recipe.model.block_size, most)
    packed.groups = packed.groups[:1]
    with parallel.eval_mode() as model:
        seconds = seconds_of(lambda: choice_losses(model, packed, parallel.device), parallel.device)
    return Part(len(packed.groups[0].numbers), seconds)


def time_sampling(recipe: Recipe, parallel: Parallel) -> Part:
    """Time a new token for each text of a set of samples."""
    count = max(1, recipe.evaluation.sample_count)
    prompts = torch.zeros(count, PROMPT_TOKENS, dtype=torch.int64, device=parallel.device.torch_device)
    sampling = Sampling(top_k=recipe.evaluation.sample_top_k)
    vocabulary = min(VOCABULARY, recipe.model.vocab_size)
    with parallel.eval_mode() as model:
        seconds = seconds_of(
            lambda: generate(model, prompts, NEW_TOKENS, sampling, vocabulary=vocabulary), parallel.device
        )
    return Part(count, seconds / NEW_TOKENS)


def time_checkpoint(recipe: Recipe, parallel: Parallel, folder: Path, console: Console) -> Checkpoint | None:
    """Time the copy of a checkpoint to memory, for which training waits, and its writing in `folder`."""
    console.update_bar("checkpoint")
    state = TrainState(recipe, data_digest="").to_json(None)
    try:
        with AsyncCheckpointer(folder, recipe.checkpoint) as saver:
            started_at = time.perf_counter()
            saver.start(1, parallel.model, parallel.optimizer, state, {})
            copied_at = time.perf_counter()
            saved = saver.collect(wait=True)
    except UserError as error:
        console.note(f"checkpoint: {error}")
        return None
    assert saved is not None
    return Checkpoint(saved.bytes, copied_at - started_at, saved.seconds)


def seconds_of(act: Callable[[], object], device: Device) -> float:
    """Return the seconds of `act`: the median of three after a warm-up, or those of the first if it takes long."""

    def once() -> float:
        started_at = time.perf_counter()
        act()
        device.synchronize()
        return time.perf_counter() - started_at

    first = once()
    return first if first > LONG_SECONDS else median(once() for _ in range(ROUNDS))
