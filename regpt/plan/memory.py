"""How much memory a training step takes, part by part, from the recipe alone.

What autograd keeps of a block is counted tensor by tensor, in the order in which `model/gpt.py` makes them; tests hold
the sum against what a real forward pass leaves behind. On a GPU these are the counts of the uncompiled model: what
torch.compile keeps instead has not been measured.
"""

from dataclasses import dataclass

from regpt.base.architecture import ModelRecipe
from regpt.base.recipe import Recipe

USED = 0.9  # of a card's memory; the rest is the allocator's, the driver's and NCCL's
STREAM = 4  # bytes of a number in the residual stream, in norms' statistics and in gradients: always float32
LOGITS_ON_GPU = 1 << 27  # numbers in a piece of the loss (model/loss.py); on a CPU:
LOGITS_ON_CPU = 1 << 24


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, at their highest."""

    weights: float
    gradients: float
    moments: float  # AdamW's two
    gathered: float  # fsdp: whole weights of the block at hand and the next, and whole gradients until they are reduced
    casts: float  # the weights' copies in bfloat16 that autocast keeps; a sharded block's arrive as such
    activations: float  # what autograd keeps of a micro-batch
    loss: float  # a piece of the logits, and the gradients of the head and of what it reads

    @property
    def state(self) -> float:
        """What is there between two steps."""
        return self.weights + self.gradients + self.moments

    @property
    def total(self) -> float:
        return self.state + self.gathered + self.casts + self.activations + self.loss

    @property
    def parts(self) -> dict[str, float]:
        """By name, those that are not empty."""
        return {name: size for name, size in vars(self).items() if size}


@dataclass(frozen=True)
class ParallelLayout:
    """How a step is laid out on devices of a kind."""

    ranks: int = 1
    micro_batch: int = 1
    accumulation: int = 1
    sharded: bool = False  # run.parallel = "fsdp"
    bfloat16: bool = True  # by autocast
    on_cpu: bool = False


def estimate_memory(recipe: Recipe, placing: ParallelLayout) -> Memory:
    """Bytes on each device."""
    model = recipe.model
    share = placing.ranks if placing.sharded else 1
    positions = placing.micro_batch * model.block_size
    of_block = block_weights(model)
    outside = model.parameters - model.n_layer * of_block  # embedding, head and norms stay gathered in a pass
    gathered = 0.0
    if placing.sharded:  # outside the blocks float32, two blocks in bfloat16, and gradients on their way
        whole_gradients = placing.accumulation > 1 and recipe.run.gradients_reduced == "step"
        gathered = 4 * outside + 2 * 2 * of_block + 4 * (model.parameters if whole_gradients else of_block)
    casts = 0.0
    if placing.bfloat16:
        casts = 2 * (0 if placing.sharded else of_block * model.n_layer) + 2 * model.vocab_size * model.n_embd
    return Memory(
        weights=4 * model.parameters / share,
        gradients=4 * model.parameters / share,
        moments=8 * model.parameters / share,
        gathered=gathered,
        casts=casts,
        activations=activation_bytes(recipe, placing),
        loss=loss_bytes(model, positions, placing),
    )


def block_weights(model: ModelRecipe) -> int:
    """In the matrix products of one block."""
    return (model.matmul_parameters - model.vocab_size * model.n_embd) // model.n_layer


def activation_bytes(recipe: Recipe, placing: ParallelLayout) -> int:
    """What autograd keeps of one micro-batch; with activation checkpointing, one block in full besides all inputs."""
    model = recipe.model
    positions = placing.micro_batch * model.block_size
    one_block = block_bytes(model, placing)
    inputs = STREAM * model.n_embd
    in_blocks = model.n_layer * inputs + one_block if recipe.run.activation_checkpointing else model.n_layer * one_block
    final_norm = STREAM * model.n_embd + norm_statistics(model)
    token_ids = 8
    dropped = mask_bytes(model, placing, STREAM)
    return positions * (token_ids + dropped + in_blocks + final_norm)


def block_bytes(model: ModelRecipe, placing: ParallelLayout) -> int:
    """What autograd keeps of one block for each token, in the order of the forward pass."""
    C, M, H, T = model.n_embd, model.mlp_hidden, model.n_head, model.block_size
    number = 2 if placing.bfloat16 else 4  # bytes of what goes into a product
    norms = 2 * (STREAM * C + norm_statistics(model))  # their inputs, the stream
    into_products = 2 * number * C  # what the norms give, as the first product of each half reads it
    if model.dropout and placing.on_cpu:  # no fused attention: all pairs of positions, three times, in float32
        attention = 4 * (3 * C + 3 * H * T) + number * C
    else:  # queries, keys and values; what is mixed, once more where rotated heads lie otherwise; a sum a head
        attention = number * C * (5 if model.positions == "rope" else 4) + 4 * H
    mlp = number * M * (3 if model.activation == "swiglu" else 2)  # what `expand` gives, and what `down` reads
    masks = 2 * mask_bytes(model, placing, number)
    return norms + into_products + attention + mlp + masks


def norm_statistics(model: ModelRecipe) -> int:
    """Bytes for each position: the scale; LayerNorm's mean as well."""
    return 4 if model.normalization == "rmsnorm" else 8


def mask_bytes(model: ModelRecipe, placing: ParallelLayout, number: int) -> int:
    """Of one dropout, for each position: numbers as long as what is dropped on a CPU, booleans on a GPU."""
    return model.n_embd * (number if placing.on_cpu else 1) if model.dropout else 0


def loss_bytes(model: ModelRecipe, positions: int, placing: ParallelLayout) -> int:
    """The head's gradient, three times what it reads (itself, its gradient, and that in the backward pass), and logits.

    A piece of the logits is float32; in bfloat16 there is a copy, of the product or of the gradient.
    """
    at_once = LOGITS_ON_CPU if placing.on_cpu else LOGITS_ON_GPU
    logits = min(at_once, positions * model.vocab_size) * (6 if placing.bfloat16 else 4)
    return STREAM * model.vocab_size * model.n_embd + 3 * STREAM * positions * model.n_embd + logits
