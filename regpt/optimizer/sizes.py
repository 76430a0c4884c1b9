"""What an optimizer costs: the bytes of its state and of its buffers, and the operations of Muon."""

from dataclasses import dataclass
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
    """A parameter of Muon: its shape, and the number of matrices in it, each of `rows` x `columns`."""

    shape: tuple[int, ...]
    matrices: int

    @property
    def short(self) -> int:
        """Return the shorter side of a matrix, which is that of its Gram matrix."""
        rows = prod(self.shape[:-1]) // self.matrices
        return min(rows, self.shape[-1])

    @property
    def long(self) -> int:
        return prod(self.shape) // (self.matrices * self.short)


def muon_stacks(recipe: Recipe) -> list[Stack]:
    """Return the parameters of a recipe that Muon updates."""
    if recipe.optimizer.kind != "muon":
        return []
    from regpt.optimizer.groups import Method, groups_of_recipe, stacked_matrices

    return [
        Stack(tuple(parameter.shape), prod(parameter.shape[:-2]) * stacked_matrices(name, recipe.model))
        for group in groups_of_recipe(recipe)
        if group.method is Method.MUON
        for name, parameter in group.parameters.items()
    ]


def newton_schulz_flops(recipe: Recipe) -> int:
    """Return the floating-point operations that orthogonalize all updates of a step.

    An iteration multiplies a matrix with its transpose, the Gram matrix with itself, and their polynomial with the
    matrix.
    """
    iterations = recipe.optimizer.newton_schulz_steps
    return sum(
        iterations * stack.matrices * (4 * stack.short**2 * stack.long + 2 * stack.short**3)
        for stack in muon_stacks(recipe)
    )


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
        grams = own * stack.matrices * stack.short**2
        collecting = 4 * one if sharded else local + one
        iterating = 3 * one + 2 * grams
        distributing = 2 * one + local
        peak = max(peak, element * max(collecting, iterating, distributing))
    return peak
