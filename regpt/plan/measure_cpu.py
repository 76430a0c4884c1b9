"""Measure in about two seconds how fast this CPU trains a recipe's model.

One block, some rows of the loss and part of the optimizer are timed in the recipe's own shapes and precision, then
multiplied by how often a step runs them. The only assumption is that each part takes as long within a step as alone.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from regpt.base.recipe import Recipe
from regpt.machine.device import Device
from regpt.model.gpt import Block, rotary_table
from regpt.model.loss import Head, mean_loss
from regpt.model.optimizer import make_optimizer

ROUNDS = 3  # per part, if the time allows; the fastest counts
OPTIMIZER_PARAMETERS = 1 << 22
FEW = 8  # rows of the loss: few enough to measure the fixed cost of a micro-batch


@dataclass(frozen=True)
class Rates:
    """Seconds of the parts of a step."""

    block: float  # forward and backward, per position
    loss: float  # per position
    micro_batch: float  # fixed cost per micro-batch: gradients of the embedding and the head
    optimizer: float  # per parameter, including gradient norm and clipping

    def step_seconds(self, recipe: Recipe, ranks: int = 1) -> float:
        """Return the seconds of one optimizer step on each of `ranks` ranks that share no hardware."""
        model = recipe.model
        micro_batches = recipe.accumulation_steps(ranks)
        positions = recipe.data.total_batch_tokens // ranks
        recompute = 4 / 3 if recipe.run.activation_checkpointing else 1.0
        return (
            positions * (recompute * model.n_layer * self.block + self.loss)
            + micro_batches * self.micro_batch
            + model.parameters * self.optimizer
        )


def measured_rates(recipe: Recipe, device: Device, seconds: float = 2.0) -> Rates:
    """Time the parts on this device in about `seconds`; each part runs at least twice."""
    per_position, fixed = loss_seconds(recipe, device, 0.35 * seconds)
    return Rates(
        block=block_seconds(recipe, device, 0.4 * seconds),
        loss=per_position,
        micro_batch=fixed,
        optimizer=optimizer_seconds(recipe, device, 0.25 * seconds),
    )


def block_seconds(recipe: Recipe, device: Device, seconds: float) -> float:
    """Return the seconds per position of one block, forward and backward.

    Runs whole sequences: a full micro-batch of them if the time allows.
    """
    model, target = recipe.model, device.torch_device
    block = Block(model).to(target)
    rotations = rotary_table(model).to(target) if model.positions == "rope" else None

    def once(sequences: int) -> None:
        x = torch.randn(sequences, model.block_size, model.n_embd, device=target, requires_grad=True)
        with device.autocast():
            y = block(x, rotations)
        y.backward(torch.ones_like(y))
        block.zero_grad(set_to_none=True)

    one = fastest(lambda: once(1), device, seconds / 2)
    sequences = max(1, min(recipe.data.micro_batch, int(seconds / 4 / one)))
    if sequences == 1:
        return one / model.block_size
    return fastest(lambda: once(sequences), device, seconds / 2) / (sequences * model.block_size)


def loss_seconds(recipe: Recipe, device: Device, seconds: float) -> tuple[float, float]:
    """Return seconds (per position, per micro-batch) of head and loss with gradients, including the embedding's."""
    model, target = recipe.model, device.torch_device
    # realistic magnitudes: far smaller products would be denormal numbers, which a CPU computes slowly
    std = model.init_std
    weight = torch.empty(model.vocab_size, model.n_embd, device=target).normal_(0.0, std).requires_grad_()
    positions = recipe.data.micro_batch * model.block_size
    chunk = Head(weight, device.precision).rows
    tokens = torch.randint(0, model.vocab_size, (chunk,), device=target)
    weight.grad = torch.zeros_like(weight)

    def once(rows: int) -> None:
        hidden = torch.nn.functional.embedding(tokens[:rows], weight) / std
        with device.autocast():
            mean_loss(hidden, weight, tokens[:rows].roll(1)).backward()

    many = min(chunk, positions)
    few_seconds = fastest(lambda: once(FEW), device, seconds / 3)
    many_seconds = fastest(lambda: once(many), device, 2 * seconds / 3)
    return max(0.0, many_seconds - few_seconds) / max(1, many - FEW), few_seconds


def optimizer_seconds(recipe: Recipe, device: Device, seconds: float) -> float:
    """Return the seconds per parameter of gradient norm, clipping, AdamW and resetting the gradients."""
    layer = torch.nn.Linear(1024, OPTIMIZER_PARAMETERS // 1024, bias=False).to(device.torch_device)
    optimizer = make_optimizer(layer, replace(recipe, name="rates"))

    def once() -> None:
        layer.weight.grad = torch.ones_like(layer.weight)
        torch.linalg.vector_norm(layer.weight.grad, dim=-1)
        layer.weight.grad.mul_(0.5)
        optimizer.step()

    return fastest(once, device, seconds) / OPTIMIZER_PARAMETERS


def fastest(act: Callable[[], None], device: Device, seconds: float) -> float:
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
