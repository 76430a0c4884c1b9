"""What a run needs on cards that one does not have: compute, memory, network and money, from the recipe's own counts.

Everything here is arithmetic; docs/scale.md has the formulae in words. What is an assumption stands in `Cards`.
"""

import math
from dataclasses import dataclass

from regpt.base.recipe import Recipe


@dataclass(frozen=True)
class Cards:
    """A kind of card and how many of them are joined."""

    name: str
    peak: float  # dense bfloat16, FLOP/s
    memory: float  # bytes
    within: float  # bytes/s to the other cards of its machine, one direction
    between: float  # bytes/s to other machines, one direction, for each card
    of_machine: int  # cards in one
    usd_per_hour: float  # of one card
    share_of_peak: tuple[float, float]  # reached by computing alone: a careful and a good run

    def bandwidth(self, ranks: int) -> float:
        """Bytes/s that a ring over so many moves: NCCL lays one over each card's way out, so a machine's add up."""
        return self.within if ranks <= self.of_machine else min(self.within, self.of_machine * self.between)


# NVIDIA's data sheet of the H100 SXM: 989.4 TFLOP/s dense, 80 GB, NVLink 900 GB/s both ways together; 400 Gbit/s for
# each card between machines, as in its DGX. Shares of peak: 450,000 tokens/s published for 124 M are 0.36. The price is
# a guess at what rented cards cost, to be replaced by yours.
H100 = Cards("H100", 989.4e12, 80e9, 450e9, 50e9, 8, 2.5, (0.30, 0.45))
USED = 0.9  # of the memory; the rest is the allocator's, the driver's and NCCL's
BUCKET = 25 * 2**20  # bytes of gradients that DistributedDataParallel reduces at once
LATENCY = 20e-6  # seconds of one hop in a tree over all cards; a guess
LOGITS = 512 * 2**20  # bytes of the loss's buffer on a GPU


@dataclass(frozen=True)
class Memory:
    """Bytes on one card."""

    state: float  # weights, gradients, AdamW's two moments
    gathered: float  # fsdp: whole weights of the block at hand and the next, and whole gradients until they are reduced
    casts: float  # the weights' copies in bfloat16 that autocast keeps; a sharded block's arrive as such
    activations: float
    loss: float

    @property
    def total(self) -> float:
        return self.state + self.gathered + self.casts + self.activations + self.loss


@dataclass(frozen=True)
class Reckoning:
    """One recipe on so many cards."""

    ranks: int
    micro_batch: int
    accumulation: int
    sharded: bool
    memory: Memory
    compute_seconds: tuple[float, float]  # of a step: a good and a careful share of peak
    network_seconds: float
    steps: int
    cards: Cards

    @property
    def step_seconds(self) -> tuple[float, float]:
        """Of a step: with the network wholly behind computing, and with nothing of it."""
        good, careful = self.compute_seconds
        return max(good, self.network_seconds), careful + self.network_seconds

    @property
    def hours(self) -> tuple[float, float]:
        good, careful = self.step_seconds
        return self.steps * good / 3600, self.steps * careful / 3600

    @property
    def usd(self) -> tuple[float, float]:
        good, careful = self.hours
        return good * self.ranks * self.cards.usd_per_hour, careful * self.ranks * self.cards.usd_per_hour


def reckon(recipe: Recipe, ranks: int, cards: Cards) -> Reckoning | None:
    """On so many cards, with the largest micro-batch that fits; None where nothing fits or the batch does not divide.

    ddp where the whole state fits on a card, else fsdp.
    """
    for sharded in (False, True):
        for micro_batch in (64, 32, 16, 8, 4, 2, 1):
            windows = micro_batch * ranks
            if recipe.batch_windows % windows or (sharded and ranks == 1):
                continue
            accumulation = recipe.batch_windows // windows
            needed = memory(recipe, ranks, micro_batch, accumulation, sharded)
            if needed.total <= USED * cards.memory:
                return Reckoning(
                    ranks=ranks,
                    micro_batch=micro_batch,
                    accumulation=accumulation,
                    sharded=sharded,
                    memory=needed,
                    compute_seconds=compute_seconds(recipe, ranks, cards),
                    network_seconds=network_seconds(recipe, ranks, accumulation, sharded, cards),
                    steps=recipe.run.max_steps,
                    cards=cards,
                )
    return None


def memory(recipe: Recipe, ranks: int, micro_batch: int, accumulation: int, sharded: bool) -> Memory:
    """Bytes on one card, in bfloat16 autocast with float32 weights."""
    model = recipe.model
    share = ranks if sharded else 1
    of_block = (model.matmul_parameters - model.vocab_size * model.n_embd) / model.n_layer
    outside = model.parameters - model.n_layer * of_block  # embedding, head and norms stay gathered in a pass
    whole_gradients = accumulation > 1 and recipe.run.gradients_reduced == "step"
    gathered = 0.0
    if sharded:  # outside the blocks float32, two blocks in bfloat16, and gradients on their way
        gathered = 4 * outside + 2 * 2 * of_block + 4 * (model.parameters if whole_gradients else of_block)
    positions = micro_batch * model.block_size
    inside = positions * activation_bytes(recipe)
    layers = (
        positions * 4 * model.n_embd * model.n_layer + inside
        if recipe.run.activation_checkpointing
        else (inside * model.n_layer)
    )
    casts = 2 * (0 if sharded else of_block * model.n_layer) + 2 * model.vocab_size * model.n_embd
    loss = LOGITS + 4 * model.vocab_size * model.n_embd + 12 * positions * model.n_embd
    return Memory(16 * model.parameters / share, gathered, casts, layers, loss)


def activation_bytes(recipe: Recipe) -> int:
    """What autograd keeps of a block for each token, in bfloat16 autocast; counted with saved_tensors_hooks."""
    model = recipe.model
    return (22 if model.positions == "rope" else 20) * model.n_embd + (
        6 if model.activation == "swiglu" else 4
    ) * model.mlp_hidden


def compute_seconds(recipe: Recipe, ranks: int, cards: Cards) -> tuple[float, float]:
    """Of a step at the good share of peak and at the careful one."""
    again = 4 / 3 if recipe.run.activation_checkpointing else 1.0
    work = again * recipe.model.flops_per_token * recipe.data.total_batch_tokens / ranks
    careful, good = cards.share_of_peak
    return work / (good * cards.peak), work / (careful * cards.peak)


def network_seconds(recipe: Recipe, ranks: int, accumulation: int, sharded: bool, cards: Cards) -> float:
    """Of a step: what each card sends, and the hops of each collective."""
    if ranks == 1:
        return 0.0
    buckets = 4 * recipe.model.parameters / BUCKET
    collectives = 6 * recipe.model.n_layer * accumulation if sharded else 2 * buckets  # attention and MLP by themselves
    hops = collectives * math.log2(ranks) * LATENCY
    return bytes_sent(recipe, ranks, accumulation, sharded) / cards.bandwidth(ranks) + hops


def bytes_sent(recipe: Recipe, ranks: int, accumulation: int, sharded: bool) -> float:
    """By each card in a step, over a ring: float32 gradients; with fsdp the blocks' weights twice in bfloat16, too."""
    model = recipe.model
    others = (ranks - 1) / ranks
    if not sharded:
        return 2 * 4 * model.parameters * others
    of_blocks = model.matmul_parameters - model.vocab_size * model.n_embd
    weights = 2 * 2 * of_blocks + 4 * (model.parameters - of_blocks)
    reductions = accumulation if recipe.run.gradients_reduced == "micro-batch" else 1
    return others * (weights * accumulation + 4 * model.parameters * reductions)
