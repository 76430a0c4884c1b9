"""torch.compile on and off: equal losses and gradients, and nothing compiled again."""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.gpu.bench import Bench, Training, free_memory, relative, relative_norm
from benchmarks.gpu.data import open_windows, synthetic_questions
from benchmarks.gpu.results import Bound, Measured
from regpt.evaluation.scoring import PackedQuestions, choice_losses
from regpt.evaluation.validation import validation

STEPS = 6
STEPS_AFTER = 4  # without a new compilation
QUESTIONS = 64


def compiled_as_eager(bench: Bench) -> Iterator[Measured]:
    """Train with and without torch.compile, in float32 and in the precision of products; then count compilations."""
    recipe = bench.recipe("gpt2-modern", "optimizer.warmup_steps=3", "evaluation.validation_batches=1", short=True)
    batches = bench.batches(recipe)
    torch.set_float32_matmul_precision("highest")
    for dtype, most in ((torch.float32, 1e-5), (torch.bfloat16, 2e-3)):
        name = str(dtype).removeprefix("torch.")
        found = {}
        for compiled in (False, True):
            free_memory()
            torch._dynamo.utils.counters.clear()
            training = Training(bench, recipe, bench.device(recipe, compiled, dtype))
            torch.set_float32_matmul_precision("highest")
            gradients = first_gradients(training, bench)
            found[compiled] = gradients, [training.step(batches[step % 4])[0] for step in range(STEPS)]
        (eager_gradients, eager_losses), (gradients, losses) = found[False], found[True]
        differences = [relative(mine, theirs) for mine, theirs in zip(losses, eager_losses, strict=True)]
        yield Measured(f"{name}: losses, largest relative difference", max(differences), "", Bound(most=most))
        error = relative_norm(gradients, eager_gradients)
        yield Measured(f"{name}: gradients of the first step", error, "", Bound(most=10 * most))
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        yield Measured(
            f"{name}: graphs, before the loss and of its chunks", graphs, "", Bound(equal=2 if bench.compiles else 0)
        )
    yield Measured("steps without a new compilation", steps_without_compilation(bench, training), "", Bound(least=4))
    torch.set_float32_matmul_precision("high" if bench.on_card else "highest")


def first_gradients(training: Training, bench: Bench) -> Tensor:
    """Return all gradients of the first batch as one vector."""
    training.gradients.forward_and_backward(0, bench.batches(training.recipe)[0])
    gradients = torch.cat([gradient.flatten().float() for gradient in training.parallel.gradients()])
    training.parallel.optimizer.zero_grad()
    return gradients


def steps_without_compilation(bench: Bench, training: Training) -> int:
    """Train, validate and score questions where a compilation raises; return the number of steps done."""
    recipe, batches = training.recipe, bench.batches(training.recipe)
    questions = synthetic_questions(QUESTIONS, recipe.model.vocab_size, min(100, recipe.model.block_size))
    packed = PackedQuestions(questions, recipe.model.block_size, 4 * recipe.model.block_size)
    windows = open_windows(bench.dataset(), recipe.model.block_size)
    with torch.compiler.set_stance("fail_on_recompile"):
        for step in range(STEPS_AFTER):
            training.step(batches[step % 4])
            if step == 1:
                validation(training.parallel.model, windows, recipe, training.device)
                choice_losses(training.parallel.model, packed, training.device)
    windows.close()
    return STEPS_AFTER
