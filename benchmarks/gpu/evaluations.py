"""Validation, multiple-choice scoring and sampling in the middle of training: time, and answers equal to a CPU's."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from benchmarks.gpu.bench import Bench, free_memory
from benchmarks.gpu.data import hellaswag_questions, open_windows, synthetic_questions, synthetic_tokens
from benchmarks.gpu.results import Bound, Measured
from regpt.data.tokenizer import VOCABULARY
from regpt.evaluation.sampling import generate
from regpt.evaluation.scoring import PackedQuestions, choice_losses, max_batch_tokens
from regpt.evaluation.validation import validation
from regpt.generation import decoder
from regpt.generation.drawing import Sampling
from regpt.machine.device import Device
from regpt.model import evaluation_mode
from regpt.model.gpt import GPT

LEAST_QUESTIONS_PER_SECOND = 1_500
MOST_OTHER_ANSWERS = 0.015  # of the compared questions: bfloat16 decides a near tie in another way
SAMPLES = ((4, 32), (1, 256))  # rows, new tokens


def evaluations(bench: Bench) -> Iterator[Measured]:
    """Time validation, scoring of HellaSwag's questions or random ones of their length, and sampling."""
    free_memory()
    sizes = bench.sizes
    recipe = bench.recipe("gpt2-modern", "evaluation.validation_batches=1")
    recipe = replace(recipe, evaluation=replace(recipe.evaluation, validation_batch_size=sizes.validation_windows))
    device = bench.device(recipe, compiled=False)
    model = GPT(recipe.model)
    model.initialize(1)
    model.to(bench.place)
    windows = open_windows(bench.dataset(), recipe.model.block_size)
    for name in ("first", "second"):
        taken = bench.seconds(lambda: validation(model, windows, recipe, device))
        yield Measured(f"validation of {sizes.validation_windows} windows, {name}", taken, "s")
    windows.close()
    block = recipe.model.block_size
    vocabulary = recipe.model.vocab_size
    questions = hellaswag_questions(sizes.questions) if vocabulary > VOCABULARY else []
    yield Measured("questions", "HellaSwag's" if questions else "random, as long as HellaSwag's")
    questions = questions or synthetic_questions(sizes.questions, vocabulary, sizes.question_tokens)
    packed = PackedQuestions(questions, block, max_batch_tokens(recipe, device))
    for name in ("first", "second"):
        taken = bench.seconds(lambda: choice_losses(model, packed, device))
        bound = bench.speed(Bound(least=LEAST_QUESTIONS_PER_SECOND)) if name == "second" else None
        yield Measured(f"scoring, {name}", len(questions) / taken, "questions/s", bound)
    if bench.on_card:
        yield from scoring_by_default_attention(bench, model, packed, device)
    yield from answers_of_the_cpu(
        bench, model, PackedQuestions(questions[: sizes.compared_questions], block, 4 * block)
    )
    for rows, new_tokens in SAMPLES:
        count = min(new_tokens, block)
        prompts = torch.from_numpy(synthetic_tokens(8 * rows, recipe.model.vocab_size, 6).reshape(rows, 8))
        sampling = Sampling(top_k=50)
        sample = partial(generate, model, prompts.to(bench.place), count, sampling, vocabulary=vocabulary)
        found: dict[str, list[tuple[float, str]]] = {"": [], "by plain passes, ": []}
        for _ in range(2):  # the first turn warms up
            for name, of_name in found.items():
                of_name.append(timed_sample(bench, sample, records=bench.on_card and not name))
        for name, of_name in found.items():
            yield Measured(f"sampling {name}{rows} x {count} tokens", rows * count / of_name[-1][0], "tokens/s")
        same = len({text for of_name in found.values() for _, text in of_name}) == 1
        yield Measured(f"{rows} x {count}: the same tokens as by plain passes", same, "", Bound(equal=True))


def timed_sample(bench: Bench, sample: Callable[[], Tensor], records: bool) -> tuple[float, str]:
    """Return the seconds and the tokens of a sample, with recorded passes or without."""
    drawn: list[Tensor] = []
    with patch.object(decoder, "can_record", lambda model: records):
        taken = bench.seconds(lambda: drawn.append(sample()))
    return taken, str(drawn[0].tolist())


def scoring_by_default_attention(
    bench: Bench, model: GPT, packed: PackedQuestions, device: Device
) -> Iterator[Measured]:
    """Score with all implementations of attention allowed, as PyTorch's default does."""
    limited = list(evaluation_mode.ATTENTION_OF_ANY_SHAPE)
    evaluation_mode.ATTENTION_OF_ANY_SHAPE[:] = [SDPBackend.CUDNN_ATTENTION, *limited]
    try:
        for name in ("first", "second"):
            taken = bench.seconds(lambda: choice_losses(model, packed, device))
            speed = len(packed.questions) / taken
            yield Measured(f"scoring with cuDNN allowed, {name}", speed, "questions/s")
    finally:
        evaluation_mode.ATTENTION_OF_ANY_SHAPE[:] = limited


def answers_of_the_cpu(bench: Bench, model: GPT, packed: PackedQuestions) -> Iterator[Measured]:
    """Count the questions for which this device and a CPU in float32 choose different answers."""
    recipe = bench.recipe("gpt2-modern")
    on_device = choice_losses(model, packed, bench.device(recipe, compiled=False)).argmin(axis=1)
    on_cpu = replace(bench.device(recipe, compiled=False), torch_device=torch.device("cpu"), precision=torch.float32)
    expected = choice_losses(model.cpu(), packed, on_cpu).argmin(axis=1)
    model.to(bench.place)
    most = int(MOST_OTHER_ANSWERS * len(packed.questions))
    other = int(np.count_nonzero(on_device != expected))
    yield Measured(f"answers other than a CPU's, of {len(packed.questions)}", other, "", Bound(most=most))
