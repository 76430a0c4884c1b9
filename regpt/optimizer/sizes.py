"""What an optimizer costs: the bytes of its state and of its buffers, and the operations of Muon."""

from dataclasses import dataclass
from itertools import groupby
from math import prod

from regpt.recipe.recipe import Recipe

FLOAT32 = 4  # bytes per element of weights and state


def checkpoint_bytes(recipe: Recipe) -> int:
    """Return the bytes of one checkpoint: float32 weights and the optimizer's state."""
    return FLOAT32 * recipe.model.parameters + moment_bytes(recipe)


def moment_bytes(recipe: Recipe) -> int:
    """Return the bytes of the optimizer's state: two moments of each parameter of AdamW, one of each of Muon.

    NorMuon has another one per row. An average of the weights is as large as the weights.
    """
    stacks = muon_stacks(recipe)
    by_muon = sum(prod(stack.shape) for stack in stacks)
    rows = sum(prod(stack.shape[:-1]) for stack in stacks) if recipe.optimizer.normuon else 0
    average = recipe.model.parameters if recipe.optimizer.average_steps else 0
    return 2 * FLOAT32 * (recipe.model.parameters - by_muon) + FLOAT32 * (by_muon + rows + average)


@dataclass(frozen=True)
class Stack:
    """A parameter of Muon: its shape, and the relative heights of the matrices that it stacks by rows."""

    shape: tuple[int, ...]
    heights: tuple[int, ...]

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Return the shorter side, which is that of the Gram matrix, and the longer side of each matrix."""
        *outer, rows, columns = self.shape
        sides = [(rows * height // sum(self.heights), columns) for height in self.heights]
        return [(min(side), max(side)) for side in sides] * prod(outer)


def muon_stacks(recipe: Recipe) -> list[Stack]:
    """Return the parameters of a recipe that Muon updates."""
    if recipe.optimizer.kind != "muon":
        return []
    from regpt.optimizer.groups import Method, groups_of_recipe, stacked_matrices

    return [
        Stack(tuple(parameter.shape), stacked_matrices(name, recipe.model))
        for group in groups_of_recipe(recipe)
        if group.method is Method.MUON
        for name, parameter in group.parameters.items()
    ]


def newton_schulz_flops(recipe: Recipe) -> int:
    """Return the floating-point operations that orthogonalize all updates of a step.

    An iteration multiplies a matrix with its transpose, the Gram matrix with itself, and their polynomial with the
    matrix.
    """
    sides = [side for stack in muon_stacks(recipe) for side in stack.matrices]
    return sum(recipe.optimizer.newton_schulz_steps * (4 * short**2 * long + 2 * short**3) for short, long in sides)


def newton_schulz_share(recipe: Recipe) -> float:
    """Return the operations of `newton_schulz_flops` relative to those of forward and backward pass of a step."""
    return newton_schulz_flops(recipe) / (recipe.model.flops_per_token * recipe.data.total_batch_tokens)


def exchanged_bytes(recipe: Recipe, ranks: int, sharded: bool) -> float:
    """Return the bytes that each of several GPUs sends in a step of Muon, as `optimizer/exchange.py` does.

    Without shards all ranks gather the bfloat16 updates; with shards rows travel to their owner and back.
    """
    size = 2 * sum(prod(stack.shape) for stack in muon_stacks(recipe))
    return (2 * size / ranks if sharded else size) * (ranks - 1) / ranks


def buffer_bytes(recipe: Recipe, ranks: int = 1, sharded: bool = False, on_cpu: bool = False) -> int:
    """Return the bytes that a step of Muon allocates besides its state, at their peak on one rank.

    They are counted in the order of `Muon.update`, for its largest batch; `ranks` share the work.
    """
    from regpt.optimizer.muon import batch_size

    element = 4 if on_cpu else 2  # as in `precision_of_products`
    peak = 0
    for stack in set(stacks := muon_stacks(recipe)):
        size = prod(stack.shape)
        batch = min(stacks.count(stack), batch_size(size, ranks))
        own = -(-batch // ranks)
        one = own * size  # elements of this rank's own parameters
        local = one if sharded else batch * size
        collecting = 4 * one if sharded else local + one
        iterating = own * iterating_elements(stack)
        distributing = 2 * one + local
        peak = max(peak, element * max(collecting, iterating, distributing))
    return peak


def iterating_elements(stack: Stack) -> int:
    """Return the elements that exist at the peak of a parameter's iteration, for the matrices of one height at a time.

    They are the parameter, results of former heights, two copies of the matrices, and two Gram matrices of each. Where
    there are several heights, matrices that share one are copied first.
    """
    alike = [list(run) for _, run in groupby(stack.matrices)]
    copied = done = peak = 0
    for run in alike:
        elements = sum(short * long for short, long in run)
        copied += elements if len(run) > 1 and len(alike) > 1 else 0
        peak = max(peak, done + 2 * elements + 2 * sum(short**2 for short, _ in run))
        done += elements
    return done + copied + peak
