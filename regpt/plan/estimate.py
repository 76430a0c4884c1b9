"""Estimate the compute, memory, network time and cost of a recipe on given hardware.

Everything here is arithmetic on the recipe; docs/plan.md and docs/scale.md explain it. The assumptions are the
constants of this module, of `plan/roofline.py` and of `plan/memory.py`, and the figures in `base/cards.py`.
"""

import bisect
import math
from dataclasses import dataclass, replace

from regpt.base.cards import Card
from regpt.optimizer.sizes import exchanged_bytes, newton_schulz_flops
from regpt.plan.memory import USABLE_SHARE, Memory, ParallelLayout, block_weights, estimate_memory
from regpt.plan.roofline import speed_range
from regpt.plan.run_time import Range, RunTime, time_on_cards
from regpt.plan.workload import Workload, count_work
from regpt.recipe.recipe import Recipe

BUCKET = 25 * 2**20  # bytes of gradients in one all-reduce of DistributedDataParallel
LATENCY = 20e-6  # assumed seconds of one hop in a tree over all cards
POWER = (0.8, 1.0)  # assumed share of a card's board power during training; excludes the host machine


@dataclass(frozen=True)
class Hardware:
    """A kind of card, the number of cards per machine, and the price of a card."""

    card: Card
    usd_per_hour: float | None = None  # per card; None if no price is given
    cards_per_machine: int = 8

    def bandwidth(self, ranks: int) -> float:
        """Return the bytes/s of a ring over the ranks; between machines NCCL uses the links of all cards at once."""
        within, between = self.card.link, self.card.between
        return within if ranks <= self.cards_per_machine else min(within, self.cards_per_machine * between)


@dataclass(frozen=True)
class Estimate:
    """The estimate for one recipe on a number of cards."""

    recipe: Recipe
    hardware: Hardware
    layout: ParallelLayout
    memory: Memory
    compute_seconds: Range  # per step
    network_seconds: float  # per step
    work: Workload

    @property
    def ranks(self) -> int:
        return self.layout.ranks

    @property
    def is_speed_known(self) -> bool:
        """Return whether the card's peak is that of the precision in which the run computes."""
        return self.layout.bfloat16 == (self.hardware.card.precision == "bfloat16")

    @property
    def step_seconds(self) -> Range:
        """Return the seconds per step with communication fully overlapped with compute, and not at all."""
        compute = self.compute_seconds
        return Range(max(compute.optimistic, self.network_seconds), compute.conservative + self.network_seconds)

    @property
    def tokens_per_second(self) -> Range:
        """Return the tokens/s of all cards together."""
        tokens, step = self.recipe.data.total_batch_tokens, self.step_seconds
        return Range(tokens / step.optimistic, tokens / step.conservative)

    @property
    def share_of_peak(self) -> Range:
        """Return the model FLOP utilization (MFU)."""
        at_peak = self.ranks * self.hardware.card.peak / self.recipe.model.flops_per_token
        speed = self.tokens_per_second
        return Range(speed.optimistic / at_peak, speed.conservative / at_peak)

    @property
    def time(self) -> RunTime:
        """Return the time of the run by part: training, evaluation, checkpoints."""
        conservative, optimistic = speed_range(self.recipe.model, self.hardware.card, self.layout.compiled)
        token_seconds = Range(1 / optimistic, 1 / conservative)
        return time_on_cards(self.recipe, self.work, self.hardware.card, self.ranks, self.step_seconds, token_seconds)

    @property
    def hours(self) -> Range:
        """Return the hours of the run, including evaluation and checkpoints."""
        return Range(*(seconds / 3600 for seconds in self.time.total))

    @property
    def kilowatt_hours(self) -> Range:
        """Return the energy of the cards, excluding the host machine."""
        kilowatts = self.ranks * self.hardware.card.watts / 1000
        low, high = POWER
        return Range(self.hours.optimistic * kilowatts * low, self.hours.conservative * kilowatts * high)

    @property
    def usd(self) -> Range | None:
        """Return the cost of all cards; None if no price is given."""
        if self.hardware.usd_per_hour is None:
            return None
        per_hour = self.ranks * self.hardware.usd_per_hour
        return Range(self.hours.optimistic * per_hour, self.hours.conservative * per_hour)


def estimate(
    recipe: Recipe, ranks: int, hardware: Hardware, micro_batch: int = 0, work: Workload | None = None
) -> Estimate | None:
    """Estimate a recipe on a number of cards, with the given micro-batch or else the largest power of two that fits.

    `work` is that of the recipe, which is counted if it is not given.
    Uses ddp if the whole training state fits on one card, otherwise fsdp. Returns None if nothing fits or the batch
    does not divide among the ranks.
    """
    most = recipe.batch_windows // ranks
    sizes = [micro_batch] if micro_batch else [1 << power for power in reversed(range(most.bit_length()))]
    bfloat16 = recipe.run.precision == "bfloat16" or (
        recipe.run.precision == "auto" and hardware.card.precision == "bfloat16"
    )
    for sharded in (True,) if recipe.run.parallel == "fsdp" and ranks > 1 else (False, True):
        for size in sizes:
            if recipe.common_windows % (size * ranks) or (sharded and ranks == 1):
                continue
            accumulation = recipe.batch_windows // (size * ranks)
            compiled = is_compiled(recipe, hardware.card)
            layout = ParallelLayout(ranks, size, accumulation, sharded, bfloat16, compiled=compiled)
            memory = estimate_memory(recipe, layout)
            if memory.total <= USABLE_SHARE * hardware.card.memory:
                return Estimate(
                    recipe=recipe,
                    hardware=hardware,
                    layout=layout,
                    memory=memory,
                    compute_seconds=compute_seconds(recipe, ranks, hardware),
                    network_seconds=network_seconds(recipe, layout, hardware),
                    work=work or count_work(recipe),
                )
    return None


def is_compiled(recipe: Recipe, card: Card) -> bool:
    """Return whether a run on the card is compiled by torch.compile, if nothing is missing there."""
    return recipe.run.compile == "on" or (recipe.run.compile == "auto" and card.is_compiled_for)


def largest_micro_batch(recipe: Recipe, layout: ParallelLayout, memory: float) -> int:
    """Return the largest micro-batch that fits in `memory` bytes, whether or not it divides the batch; 0 if none."""
    most = recipe.batch_windows // layout.ranks

    def fits(size: int) -> bool:
        return estimate_memory(recipe, replace(layout, micro_batch=size)).total <= memory

    return bisect.bisect(range(1, most + 1), 0, key=lambda size: not fits(size))


def compute_seconds(recipe: Recipe, ranks: int, hardware: Hardware) -> Range:
    """Return the compute time of one step."""
    recompute = 4 / 3 if recipe.run.activation_checkpointing else 1.0
    conservative, optimistic = speed_range(recipe.model, hardware.card, is_compiled(recipe, hardware.card))
    tokens = recompute * recipe.data.total_batch_tokens / ranks
    update = newton_schulz_flops(recipe) / (recipe.model.flops_per_token * ranks)  # in tokens of the same FLOPs
    return Range((tokens + update) / optimistic, (tokens + update) / conservative)


def network_seconds(recipe: Recipe, layout: ParallelLayout, hardware: Hardware) -> float:
    """Return the communication time of one step: bytes sent by each card, plus the latency of each collective."""
    ranks = layout.ranks
    if ranks == 1:
        return 0.0
    buckets = 4 * recipe.model.parameters / BUCKET
    # fsdp shards the attention and the MLP of a block separately
    collectives = 6 * recipe.model.n_layer * layout.accumulation if layout.sharded else 2 * buckets
    hops = collectives * math.log2(ranks) * LATENCY
    return bytes_sent(recipe, layout) / hardware.bandwidth(ranks) + hops


def bytes_sent(recipe: Recipe, layout: ParallelLayout) -> float:
    """Return the bytes each card sends per step over a ring.

    ddp reduces float32 gradients. fsdp also gathers the weights of the blocks twice, in bfloat16. Muon sends updates.
    """
    model = recipe.model
    other_ranks = (layout.ranks - 1) / layout.ranks
    updates = exchanged_bytes(recipe, layout.ranks, layout.sharded)
    if not layout.sharded:
        return 2 * 4 * model.parameters * other_ranks + updates
    block_parameters = model.n_layer * block_weights(model)
    weights = 2 * 2 * block_parameters + 4 * (model.parameters - block_parameters)
    reductions = layout.accumulation if recipe.run.gradients_reduced == "micro-batch" else 1
    return other_ranks * (weights * layout.accumulation + 4 * model.parameters * reductions) + updates
