"""What a run needs on cards that one does not have: compute, memory, network and money, from the recipe's own counts.

Everything here is arithmetic; docs/plan.md and docs/scale.md have it in words. What is an assumption stands in
`Cards`, in `before/roofline.py` and in `before/memory.py`.
"""

import bisect
import math
from dataclasses import dataclass, replace

from regpt.base.cards import Card, find_card
from regpt.base.recipe import Recipe
from regpt.plan.memory import USED, Memory, ParallelLayout, estimate_memory
from regpt.plan.roofline import speeds

BUCKET = 25 * 2**20  # bytes of gradients that DistributedDataParallel reduces at once
LATENCY = 20e-6  # seconds of one hop in a tree over all cards; a guess
POWER = (0.8, 1.0)  # of a card's board power while it trains; a guess. The machine around it is not counted


@dataclass(frozen=True)
class Hardware:
    """A kind of card, how many stand in a machine, and what one costs."""

    card: Card
    usd_per_hour: float | None = None  # of one; None: not given
    of_machine: int = 8

    def bandwidth(self, ranks: int) -> float:
        """Bytes/s that a ring over so many moves: NCCL lays one over each card's way out, so a machine's add up."""
        within, between = self.card.link, self.card.between
        return within if ranks <= self.of_machine else min(within, self.of_machine * between)


H100 = Hardware(find_card("H100"), usd_per_hour=2.5)  # a guess at what rented cards cost, to be replaced by yours


@dataclass(frozen=True)
class Estimate:
    """One recipe on so many cards. Pairs are of the good case and the careful one."""

    recipe: Recipe
    cards: Hardware
    placing: ParallelLayout
    memory: Memory
    compute_seconds: tuple[float, float]  # of a step
    network_seconds: float

    @property
    def ranks(self) -> int:
        return self.placing.ranks

    @property
    def step_seconds(self) -> tuple[float, float]:
        """Of a step: with the network wholly behind computing, and with nothing of it."""
        good, careful = self.compute_seconds
        return max(good, self.network_seconds), careful + self.network_seconds

    @property
    def tokens_per_second(self) -> tuple[float, float]:
        """Of all cards together."""
        good, careful = self.step_seconds
        return self.recipe.data.total_batch_tokens / good, self.recipe.data.total_batch_tokens / careful

    @property
    def share_of_peak(self) -> tuple[float, float]:
        all_of_it = self.ranks * self.cards.card.peak / self.recipe.model.flops_per_token
        good, careful = self.tokens_per_second
        return good / all_of_it, careful / all_of_it

    @property
    def hours(self) -> tuple[float, float]:
        """Of training steps; evaluation and saving come on top."""
        good, careful = self.step_seconds
        return self.recipe.run.max_steps * good / 3600, self.recipe.run.max_steps * careful / 3600

    @property
    def kilowatt_hours(self) -> tuple[float, float]:
        """Of the cards alone."""
        kilowatts = self.ranks * self.cards.card.watts / 1000
        return self.hours[0] * kilowatts * POWER[0], self.hours[1] * kilowatts * POWER[1]

    @property
    def usd(self) -> tuple[float, float]:
        """0 where no price is given."""
        good, careful = self.hours
        an_hour = self.ranks * (self.cards.usd_per_hour or 0.0)
        return good * an_hour, careful * an_hour


def estimate(recipe: Recipe, ranks: int, cards: Hardware, micro_batch: int = 0) -> Estimate | None:
    """On so many cards, with the given micro-batch, else the largest power of two that fits.

    None where nothing fits or the batch does not divide. ddp where the whole state fits on a card, else fsdp.
    """
    most = recipe.batch_windows // ranks
    sizes = [micro_batch] if micro_batch else [1 << power for power in reversed(range(most.bit_length()))]
    bfloat16 = recipe.run.precision != "float32"
    for sharded in (True,) if recipe.run.parallel == "fsdp" and ranks > 1 else (False, True):
        for size in sizes:
            if recipe.batch_windows % (size * ranks) or (sharded and ranks == 1):
                continue
            placing = ParallelLayout(ranks, size, recipe.batch_windows // (size * ranks), sharded, bfloat16)
            needed = estimate_memory(recipe, placing)
            if needed.total <= USED * cards.card.memory:
                return Estimate(
                    recipe=recipe,
                    cards=cards,
                    placing=placing,
                    memory=needed,
                    compute_seconds=compute_seconds(recipe, ranks, cards),
                    network_seconds=network_seconds(recipe, placing, cards),
                )
    return None


def largest_micro_batch(recipe: Recipe, placing: ParallelLayout, memory: float) -> int:
    """Sequences of a rank's batch that fit at once, whether it divides by them or not; 0 where not even one does."""
    most = recipe.batch_windows // placing.ranks

    def fits(size: int) -> bool:
        return estimate_memory(recipe, replace(placing, micro_batch=size)).total <= memory

    return bisect.bisect(range(1, most + 1), 0, key=lambda size: not fits(size))


def compute_seconds(recipe: Recipe, ranks: int, cards: Hardware) -> tuple[float, float]:
    """Of a step, at the good speed and at the careful one."""
    again = 4 / 3 if recipe.run.activation_checkpointing else 1.0
    careful, good = speeds(recipe.model, cards.card)
    tokens = again * recipe.data.total_batch_tokens / ranks
    return tokens / good, tokens / careful


def network_seconds(recipe: Recipe, placing: ParallelLayout, cards: Hardware) -> float:
    """Of a step: what each card sends, and the hops of each collective."""
    ranks = placing.ranks
    if ranks == 1:
        return 0.0
    buckets = 4 * recipe.model.parameters / BUCKET
    # of a sharded model, attention and MLP by themselves
    collectives = 6 * recipe.model.n_layer * placing.accumulation if placing.sharded else 2 * buckets
    hops = collectives * math.log2(ranks) * LATENCY
    return bytes_sent(recipe, placing) / cards.bandwidth(ranks) + hops


def bytes_sent(recipe: Recipe, placing: ParallelLayout) -> float:
    """By each card in a step, over a ring: float32 gradients; with fsdp the blocks' weights twice in bfloat16, too."""
    model = recipe.model
    others = (placing.ranks - 1) / placing.ranks
    if not placing.sharded:
        return 2 * 4 * model.parameters * others
    of_blocks = model.matmul_parameters - model.vocab_size * model.n_embd
    weights = 2 * 2 * of_blocks + 4 * (model.parameters - of_blocks)
    reductions = placing.accumulation if recipe.run.gradients_reduced == "micro-batch" else 1
    return others * (weights * placing.accumulation + 4 * model.parameters * reductions)
