"""Measure in about two seconds how fast this CPU trains and evaluates a recipe's model.

One block, some rows of the loss and part of the optimizer are timed in the recipe's own shapes and precision, then
multiplied by how often a run needs them. The only assumption is that each part takes as long within a run as alone.
"""

import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from regpt.generation.drawing import Sampling, choose
from regpt.machine.compilation import compilation_errors
from regpt.machine.device import Device
from regpt.model.chunks import rows_of_chunk
from regpt.model.gpt import Block, BlockInputs
from regpt.model.loss import LossOptions, mean_loss, token_losses
from regpt.model.rotary import rotary_table
from regpt.optimizer.adam import AdamW
from regpt.optimizer.muon import orthogonalize
from regpt.optimizer.sizes import muon_stacks
from regpt.plan.run_time import Rates
from regpt.recipe.recipe import Recipe

ROUNDS = 3  # per part, if the time allows; the fastest counts
OPTIMIZER_PARAMETERS = 1 << 22
FEW = 8  # rows of the loss: few enough to measure the fixed cost of a micro-batch
CHUNKS_FORWARD = 2  # chunks of logits in a forward pass that is timed; they share one buffer, as in an evaluation


def measured_rates(recipe: Recipe, device: Device, seconds: float = 2.0) -> Rates:
    """Time the parts on this device in about `seconds`; each part runs at least twice."""
    per_position, fixed = loss_seconds(recipe, device, 0.25 * seconds)
    block, block_forward = block_seconds(recipe, device, 0.35 * seconds)
    return Rates(
        block=block,
        loss=per_position,
        micro_batch=fixed,
        optimizer=optimizer_seconds(recipe, device, 0.2 * seconds),
        orthogonalization=orthogonalization_seconds(recipe, device, 0.2 * seconds),
        block_forward=block_forward,
        loss_forward=loss_forward_seconds(recipe, device, 0.15 * seconds),
        sampling_round=sampling_seconds(recipe, device, 0.05 * seconds),
    )


def block_seconds(recipe: Recipe, device: Device, seconds: float) -> tuple[float, float]:
    """Return the seconds per position of one block, (forward and backward, forward alone).

    Runs whole sequences: a full micro-batch of them if the time allows.
    """
    model, target = recipe.model, device.torch_device
    block = Block(model).to(target)
    rotations = rotary_table(model).to(target, device.precision) if model.positions == "rope" else None

    def train(sequences: int) -> None:
        x = torch.randn(sequences, model.block_size, model.n_embd, device=target, requires_grad=True)
        with device.autocast():
            y, _ = block(x, BlockInputs(rotations))
        y.backward(torch.ones_like(y))
        block.zero_grad()

    def evaluate(x: Tensor) -> None:
        with torch.no_grad(), device.autocast():
            block(x, BlockInputs(rotations))

    best = fastest(lambda: train(1), device, 0.4 * seconds)
    sequences = max(1, min(recipe.data.micro_batch, int(0.2 * seconds / best)))
    if sequences > 1:
        best = fastest(lambda: train(sequences), device, 0.4 * seconds)
    x = torch.randn(sequences, model.block_size, model.n_embd, device=target)
    block.eval()
    forward = fastest(lambda: evaluate(x), device, 0.2 * seconds)
    positions = sequences * model.block_size
    return best / positions, forward / positions


def loss_seconds(recipe: Recipe, device: Device, seconds: float) -> tuple[float, float]:
    """Return seconds (per position, per micro-batch) of head and loss with gradients, including the embedding's."""
    model, target = recipe.model, device.torch_device
    # realistic magnitudes: far smaller products would be denormal numbers, which a CPU computes slowly
    std = model.init_std
    weight = torch.empty(model.vocab_size, model.n_embd, device=target).normal_(0.0, std).requires_grad_()
    positions = recipe.data.micro_batch * model.block_size
    chunk = rows_of_chunk(
        positions, model.vocab_size, target.type == "cpu", device.compiled, device.precision == torch.bfloat16
    )
    options = LossOptions(compiled=device.compiled)
    tokens = torch.randint(0, model.vocab_size, (chunk,), device=target)
    weight.grad = torch.zeros_like(weight)

    def once(rows: int) -> None:
        hidden = torch.nn.functional.embedding(tokens[:rows], weight) / std
        with compilation_errors(), device.autocast():
            mean_loss(hidden, weight, tokens[:rows].roll(1), options).backward()

    many = min(chunk, positions)
    few_seconds = fastest(lambda: once(FEW), device, seconds / 3)
    many_seconds = fastest(lambda: once(many), device, 2 * seconds / 3)
    return max(0.0, many_seconds - few_seconds) / max(1, many - FEW), few_seconds


def loss_forward_seconds(recipe: Recipe, device: Device, seconds: float) -> float:
    """Return the seconds per position of head and loss without gradients."""
    model, target = recipe.model, device.torch_device
    weight = torch.empty(model.vocab_size, model.n_embd, device=target).normal_(0.0, model.init_std)
    positions = recipe.data.micro_batch * model.block_size
    chunk = rows_of_chunk(
        positions,
        model.vocab_size,
        target.type == "cpu",
        compiled=False,
        bfloat16=device.precision == torch.bfloat16,
        gradients=False,
    )
    rows = min(CHUNKS_FORWARD * chunk, positions)
    tokens = torch.randint(0, model.vocab_size, (rows,), device=target)
    hidden = torch.randn(rows, model.n_embd, device=target)

    def once() -> None:
        with device.autocast():
            token_losses(hidden, weight, tokens)

    return fastest(once, device, seconds) / rows


def sampling_seconds(recipe: Recipe, device: Device, seconds: float) -> float:
    """Return the seconds in which each text of a set of samples gets one token, without attention to earlier ones."""
    model, target, count = recipe.model, device.torch_device, max(1, recipe.evaluation.sample_count)
    block = Block(model).to(target).eval()
    weight = torch.empty(model.vocab_size, model.n_embd, device=target).normal_(0.0, model.init_std)
    rotations = rotary_table(model).to(target)[:, :1] if model.positions == "rope" else None
    generators = [torch.Generator().manual_seed(number) for number in range(count)]
    sampling = Sampling(top_k=recipe.evaluation.sample_top_k)

    @torch.no_grad()
    def once() -> None:
        x = torch.randn(count, 1, model.n_embd, device=target)
        for _ in range(model.n_layer):
            x, _ = block(x, BlockInputs(rotations))
        choose(torch.nn.functional.linear(x[:, -1], weight), [sampling] * count, generators)

    return fastest(once, device, seconds)


def optimizer_seconds(recipe: Recipe, device: Device, seconds: float) -> float:
    """Return the seconds per parameter of gradient norm, clipping, AdamW and resetting the gradients."""
    layer = torch.nn.Linear(1024, OPTIMIZER_PARAMETERS // 1024, bias=False).to(device.torch_device)
    optimizer = AdamW([{"params": [layer.weight], "lr": 0.0, "weight_decay": 0.1}], recipe.optimizer)

    def once() -> None:
        layer.weight.grad = torch.ones_like(layer.weight)
        torch.linalg.vector_norm(layer.weight.grad, dim=-1)
        layer.weight.grad.mul_(0.5)
        optimizer.step()

    return fastest(once, device, seconds) / OPTIMIZER_PARAMETERS


def orthogonalization_seconds(recipe: Recipe, device: Device, seconds: float) -> float:
    """Return the seconds in which Muon orthogonalizes the matrices of a step; 0 for AdamW."""
    sizes = Counter(sides for stack in muon_stacks(recipe) for sides in stack.matrices)

    def one(short: int, long: int) -> float:
        update = torch.randn(1, short, long, device=device.torch_device)
        act = partial(orthogonalize, update, recipe.optimizer.newton_schulz_steps)
        return fastest(act, device, seconds / len(sizes))

    return sum(count * one(*size) for size, count in sizes.items())


def fastest(act: Callable[[], object], device: Device, seconds: float) -> float:
    """Return the seconds of the fastest of 1 to 3 rounds, after one warm-up, within about `seconds`."""
    best, began_at = float("inf"), time.perf_counter()
    for number in range(1 + ROUNDS):
        started_at = time.perf_counter()
        act()
        device.synchronize()
        ended_at = time.perf_counter()
        if number:
            best = min(best, ended_at - started_at)
            if ended_at - began_at > seconds:
                break
    return best
