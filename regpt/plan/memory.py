"""Estimate the memory of a training step, part by part, from the recipe alone.

The tensors that autograd saves in a block are counted one by one, in the order in which `model/gpt.py` creates them.
Tests compare the sum with the tensors that a real forward pass saves. For a GPU the counts are those of the uncompiled
model; what torch.compile saves instead has not been measured.
"""

from dataclasses import dataclass

from regpt.model.chunks import rows_in_cache, rows_of_chunk
from regpt.optimizer.sizes import buffer_bytes, moment_bytes
from regpt.recipe.architecture import ModelRecipe
from regpt.recipe.recipe import Recipe

USABLE_SHARE = 0.9  # of a card's memory; the allocator, the driver and NCCL take the rest
STREAM = 4  # bytes per element of the residual stream, norm statistics and gradients: always float32


@dataclass(frozen=True)
class Memory:
    """Peak memory of one device, in bytes."""

    weights: float
    gradients: float
    moments: float  # the optimizer's state: AdamW's two, Muon's one
    gathered: float  # fsdp: full weights of the current and the next block, and full gradients until reduced
    casts: float  # bfloat16 copies of the weights that autocast keeps; fsdp gathers blocks in bfloat16
    activations: float  # tensors that autograd saves for one micro-batch
    loss: float  # one chunk of logits, and the gradients of the head and of its input
    orthogonalization: float  # buffers of Muon's update, beyond the memory that the passes have freed

    @property
    def state(self) -> float:
        """Return the bytes that stay allocated between two steps."""
        return self.weights + self.gradients + self.moments

    @property
    def total(self) -> float:
        return self.state + self.gathered + self.casts + self.activations + self.loss + self.orthogonalization

    @property
    def parts(self) -> dict[str, float]:
        """Return the nonzero parts by name."""
        return {name: size for name, size in vars(self).items() if size}


@dataclass(frozen=True)
class ParallelLayout:
    """How a step is distributed over devices of one kind."""

    ranks: int = 1
    micro_batch: int = 1
    accumulation: int = 1
    sharded: bool = False  # run.parallel = "fsdp"
    bfloat16: bool = True  # under autocast
    on_cpu: bool = False
    compiled: bool = False  # by torch.compile


def estimate_memory(recipe: Recipe, layout: ParallelLayout) -> Memory:
    """Estimate the bytes on each device."""
    model = recipe.model
    share = layout.ranks if layout.sharded else 1
    positions = layout.micro_batch * model.block_size
    per_block = block_weights(model)
    outside = model.parameters - model.n_layer * per_block  # embedding, head and norms stay gathered during a pass
    gathered = 0.0
    if layout.sharded:  # outside the blocks float32, two blocks in bfloat16, and unreduced gradients
        whole_gradients = layout.accumulation > 1 and recipe.run.gradients_reduced == "step"
        gathered = 4 * outside + 2 * 2 * per_block + 4 * (model.parameters if whole_gradients else per_block)
    casts = 0.0
    if layout.bfloat16:
        casts = 2 * (0 if layout.sharded else per_block * model.n_layer) + 2 * model.vocab_size * model.n_embd
    activations, loss = activation_bytes(recipe, layout), loss_bytes(model, positions, layout)
    update = buffer_bytes(recipe, layout.ranks, layout.sharded, layout.on_cpu)
    return Memory(
        weights=4 * model.parameters / share,
        gradients=4 * model.parameters / share,
        moments=moment_bytes(recipe) / share,
        gathered=gathered,
        casts=casts,
        activations=activations,
        loss=loss,
        orthogonalization=max(0.0, update - gathered - casts - activations - loss),
    )


def block_weights(model: ModelRecipe) -> int:
    """Return the number of weights in the matrices of one block, those of all experts included."""
    return model.block_matmul_parameters + model.idle_parameters // model.n_layer


def activation_bytes(recipe: Recipe, layout: ParallelLayout) -> int:
    """Return the bytes autograd saves for one micro-batch.

    With activation checkpointing: the inputs of all blocks, and one block in full.
    """
    model = recipe.model
    positions = layout.micro_batch * model.block_size
    one_block = block_bytes(model, layout)
    inputs = STREAM * model.n_embd
    blocks = model.n_layer * inputs + one_block if recipe.run.activation_checkpointing else model.n_layer * one_block
    final_norm = STREAM * model.n_embd + norm_statistics(model)
    token_ids = 8
    dropped = mask_bytes(model, layout, STREAM)
    return positions * (token_ids + dropped + blocks + final_norm + shared_bytes(model, layout))


def shared_bytes(model: ModelRecipe, layout: ParallelLayout) -> int:
    """Return the bytes per token of what switches of the model save outside the blocks, or once for all of them."""
    number = 2 if layout.bfloat16 else 4
    norm = 4 if model.embedding_norm else 0  # the scale
    mask = number * model.block_size if model.document_mask else 0
    # Each input of `residual_scale` besides the embedding, which the first norm saves where nothing is added to it.
    residual = STREAM * model.n_embd * model.n_layer if model.residual_scalars else 0
    mixed = number * model.kv_width * (model.n_layer - 1) if model.value_residual else 0
    gates = model.kv_heads * (number + 4) + number * model.gate_channels  # inputs, sigmoid and its double
    tables = len(model.layers_with_value_embeddings) * (number * model.kv_width + gates)
    return norm + mask + residual + mixed + tables


def block_bytes(model: ModelRecipe, layout: ParallelLayout) -> int:
    """Return the bytes per token that autograd saves for one block, in the order of the forward pass."""
    C, M, H, T = model.n_embd, model.mlp_hidden, model.n_head, model.block_size
    A, KV = model.attention_width, model.kv_width
    number = 2 if layout.bfloat16 else 4  # bytes per element of a matrix product's input
    norms = 2 * (STREAM * C + norm_statistics(model))  # their inputs: the residual stream
    into_products = 2 * number * C  # outputs of the norms, read by the first product of attention and MLP
    if model.dropout and layout.on_cpu:  # no fused attention: three T x T matrices per head, in float32
        attention = 4 * (3 * A + 3 * H * T) + number * A
    else:  # q, k, v and the output; with RoPE a second copy in another layout; logsumexp per head
        attention = number * (A * (3 if model.positions == "rope" else 2) + 2 * KV) + 4 * H
    if model.qk_norm:  # scales, and without RoPE, whose outputs are free for it, a second copy of q and k
        attention += 4 * (H + model.kv_heads) + (0 if model.positions == "rope" else number * (A + KV))
    mlp = number * (model.expanded_width + M)  # output of `expand`, input of `down`
    if model.experts:
        mlp = expert_bytes(model, mlp, number)
    masks = 2 * mask_bytes(model, layout, number)
    return norms + into_products + attention + mlp + masks


def expert_bytes(model: ModelRecipe, mlp: int, number: int) -> int:
    """Return the bytes per token of a mixture of experts whose experts take `mlp` each.

    A row goes to an expert and comes back: its input and its output. In float32 the scores, the weights of the experts
    before and after they are divided by their sum, and the sum. Three indices: of the chosen experts, and of the rows
    in both directions.
    """
    k = model.experts_per_token
    rows = k * (mlp + 2 * number * model.n_embd)
    scores = 4 * model.experts + (4 * (2 * k + 1) if k > 1 else 4)
    indices = 3 * 8 * k
    return rows + scores + indices + model.shared_experts * mlp


def norm_statistics(model: ModelRecipe) -> int:
    """Return the bytes per position: the scale, and for LayerNorm also the mean."""
    return 4 if model.normalization == "rmsnorm" else 8


def mask_bytes(model: ModelRecipe, layout: ParallelLayout, number: int) -> int:
    """Return the bytes per position of one dropout mask: booleans on a GPU, the input's data type on a CPU."""
    return model.n_embd * (number if layout.on_cpu else 1) if model.dropout else 0


def loss_bytes(model: ModelRecipe, positions: int, layout: ParallelLayout) -> int:
    """Return the bytes of the loss: the head's gradient, three times the head's input, and one chunk of logits.

    The input counts three times: itself, its saved gradient, and the gradient in the backward pass. The logits have the
    precision of products. Uncompiled, a piece of them has a copy in float32 where that is another one, and a second one
    for a soft-cap.
    """
    rows = rows_of_chunk(positions, model.vocab_size, layout.on_cpu, layout.compiled, layout.bfloat16)
    piece = rows_in_cache(rows, model.vocab_size) if layout.on_cpu else rows
    copies = 0 if layout.compiled else int(layout.bfloat16) + bool(model.logit_softcap)
    logits = model.vocab_size * (rows * (2 if layout.bfloat16 else 4) + 4 * piece * copies)
    return STREAM * model.vocab_size * model.n_embd + 3 * STREAM * positions * model.n_embd + logits
