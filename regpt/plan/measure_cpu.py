"""How fast this CPU trains a recipe's model, measured in about two seconds on a few of its parts.

One block, some rows of the loss and a piece of the optimizer are timed as they are in training, in the recipe's own
shapes and precision, and added up as often as a step has them. So nothing is assumed about the machine but that a part
takes as long among many as alone.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from regpt.base.recipe import Recipe
from regpt.distributed.device import Device
from regpt.model.gpt import Block, rotary_table
from regpt.model.loss import Head, mean_loss
from regpt.model.optimizer import make_optimizer

ROUNDS = 3  # of each part, as far as the time allows; the fastest counts
OPTIMIZER_PARAMETERS = 1 << 22
FEW = 8  # rows of the loss that cost next to nothing but what a micro-batch costs besides


@dataclass(frozen=True)
class Rates:
    """Seconds of a step's parts."""

    block: float  # forward and backward, for each position
    loss: float  # for each position
    micro_batch: float  # besides, for each micro-batch: gradients of the embedding and the head
    optimizer: float  # for each parameter, with the norm and the clipping

    def step_seconds(self, recipe: Recipe, ranks: int = 1) -> float:
        """Of one optimizer step on one of so many ranks that share nothing."""
        model = recipe.model
        micro_batches = recipe.accumulation_steps(ranks)
        positions = recipe.data.total_batch_tokens // ranks
        again = 4 / 3 if recipe.run.activation_checkpointing else 1.0
        return (
            positions * (again * model.n_layer * self.block + self.loss)
            + micro_batches * self.micro_batch
            + model.parameters * self.optimizer
        )


def measured_rates(recipe: Recipe, device: Device, seconds: float = 2.0) -> Rates:
    """Time the parts on this device, for about so long; each part twice at least."""
    per_position, fixed = loss_seconds(recipe, device, 0.35 * seconds)
    return Rates(
        block=block_seconds(recipe, device, 0.4 * seconds),
        loss=per_position,
        micro_batch=fixed,
        optimizer=optimizer_seconds(recipe, device, 0.25 * seconds),
    )


def block_seconds(recipe: Recipe, device: Device, seconds: float) -> float:
    """Of forward and backward pass, for each position, of whole sequences; of a micro-batch, if that is quick."""
    model, place = recipe.model, device.torch_device
    block = Block(model).to(place)
    rotations = rotary_table(model).to(place) if model.positions == "rope" else None

    def once(sequences: int) -> None:
        x = torch.randn(sequences, model.block_size, model.n_embd, device=place, requires_grad=True)
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
    """(for each position, for each micro-batch): head and loss with their gradients, and the embedding's."""
    model, place = recipe.model, device.torch_device
    # of the size that weights and hidden states have: products far from it would make numbers that a CPU is slow at
    std = model.init_std
    weight = torch.empty(model.vocab_size, model.n_embd, device=place).normal_(0.0, std).requires_grad_()
    positions = recipe.data.micro_batch * model.block_size
    piece = Head(weight, device.precision).rows
    tokens = torch.randint(0, model.vocab_size, (piece,), device=place)
    weight.grad = torch.zeros_like(weight)

    def once(rows: int) -> None:
        hidden = torch.nn.functional.embedding(tokens[:rows], weight) / std
        with device.autocast():
            mean_loss(hidden, weight, tokens[:rows].roll(1)).backward()

    many = min(piece, positions)
    of_few = fastest(lambda: once(FEW), device, seconds / 3)
    of_many = fastest(lambda: once(many), device, 2 * seconds / 3)
    return max(0.0, of_many - of_few) / max(1, many - FEW), of_few


def optimizer_seconds(recipe: Recipe, device: Device, seconds: float) -> float:
    """Of the norm, the clipping, AdamW and forgetting the gradients, for each parameter."""
    layer = torch.nn.Linear(1024, OPTIMIZER_PARAMETERS // 1024, bias=False).to(device.torch_device)
    optimizer = make_optimizer(layer, replace(recipe, name="rates"))

    def once() -> None:
        layer.weight.grad = torch.ones_like(layer.weight)
        torch.linalg.vector_norm(layer.weight.grad, dim=-1)
        layer.weight.grad.mul_(0.5)
        optimizer.step()

    return fastest(once, device, seconds) / OPTIMIZER_PARAMETERS


def fastest(act: Callable[[], None], device: Device, seconds: float) -> float:
    """Seconds of the fastest of one to three rounds, after one that is not counted, in about so many seconds."""
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
