"""The time of a whole run, by part: training, evaluations, samples, checkpoints.

On a GPU the forward pass of an evaluation counts as a third of a training step's time per token: one of its three
matrix products. On this CPU it is measured. What is assumed about disks, copies and sampling stands in the constants.
"""

from dataclasses import dataclass, fields
from typing import NamedTuple

from regpt.base.cards import Card
from regpt.plan.workload import Workload
from regpt.recipe.recipe import Recipe

CPU_ERROR = 1.25  # factor by which a measured time may be off (benchmarks/results.md)
FORWARD_SHARE = 1 / 3  # of the time of a training token
# Assumed bytes/s, the faster first: hashing, writing and flushing a checkpoint, and copying it from a card to memory.
# On the machine of benchmarks/results.md, 87 MB took 0.33 s: 0.26 GB/s.
DISK = (1e9, 0.2e9)
COPY = (20e9, 4e9)
# Assumed seconds of a sampled token on a card besides reading the weights: starting kernels, and the draw on the CPU.
SAMPLE_OVERHEAD = (0.01, 0.05)


class Range(NamedTuple):
    """An optimistic and a conservative estimate of one figure."""

    optimistic: float
    conservative: float

    @property
    def middle(self) -> float:
        return (self.optimistic + self.conservative) / 2


NOTHING = Range(0.0, 0.0)


@dataclass(frozen=True)
class RunTime:
    """The seconds of each part of a run."""

    training: Range
    validation: Range = NOTHING
    tasks: Range = NOTHING
    samples: Range = NOTHING
    checkpoints: Range = NOTHING
    start: Range = NOTHING

    @property
    def parts(self) -> dict[str, Range]:
        """Return the parts by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def total(self) -> Range:
        return Range(*(sum(ends) for ends in zip(*self.parts.values(), strict=True)))

    def share(self, *parts: str) -> float:
        """Return the share (0 to 1) of the run's time that these parts take, in the middle of their ranges."""
        return sum(self.parts[part].middle for part in parts) / self.total.middle

    @property
    def evaluation_share(self) -> float:
        """Return the share of validation, tasks and samples together."""
        return self.share("validation", "tasks", "samples")


@dataclass(frozen=True)
class Rates:
    """Seconds of the parts of a run on this CPU."""

    block: float  # forward and backward, per position
    loss: float  # forward and backward, per position
    micro_batch: float  # fixed cost per micro-batch: gradients of the embedding and the head
    optimizer: float  # per parameter, including gradient norm and clipping
    orthogonalization: float = 0.0  # of all matrices of Muon, per step
    block_forward: float = 0.0  # forward alone, per position
    loss_forward: float = 0.0  # forward alone, per position
    sampling_round: float = 0.0  # one new token for each text of a set

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
            + self.orthogonalization
        )

    def forward_seconds(self, recipe: Recipe, positions: int, targets: int) -> float:
        """Return the seconds of forward passes whose blocks compute `positions` and whose head computes `targets`."""
        return positions * recipe.model.n_layer * self.block_forward + targets * self.loss_forward


def time_on_cpu(recipe: Recipe, work: Workload, rates: Rates, start_seconds: float) -> RunTime:
    """Return the time of a run on this CPU. Checkpoints written in the background take processors from training."""

    def measured(seconds: float) -> Range:
        return Range(seconds / CPU_ERROR, seconds * CPU_ERROR)

    positions = work.validation_positions
    updates = (work.steps - work.full_steps) * recipe.model.parameters * rates.optimizer  # of smaller steps
    return RunTime(
        training=measured(work.full_steps * rates.step_seconds(recipe) + updates),
        validation=measured(rates.forward_seconds(recipe, positions, positions)),
        tasks=measured(rates.forward_seconds(recipe, work.task_positions, work.task_targets)),
        samples=measured(work.sampling_rounds * rates.sampling_round),
        checkpoints=Range(*(work.checkpoints * work.checkpoint_bytes / speed for speed in DISK)),
        start=measured(start_seconds),
    )


def time_on_cards(
    recipe: Recipe, work: Workload, card: Card, ranks: int, step_seconds: Range, token_seconds: Range
) -> RunTime:
    """Return the time of a run on `ranks` cards, from the seconds of a step and those of a training token on one card.

    Training waits for the copy of each checkpoint, and for the writing of those that are not written in the background.
    """
    model = recipe.model
    head = 6 * model.vocab_size * model.n_embd / model.flops_per_token  # share of the FLOPs
    positions = work.validation_positions
    tasks = (1 - head) * work.task_positions + head * work.task_targets
    weights = 4 * model.parameters / card.bandwidth  # seconds to read them once, which a sampled token does
    disk = [work.waited_checkpoints * work.checkpoint_bytes / speed for speed in DISK]
    copies = [work.checkpoints * work.checkpoint_bytes / speed for speed in COPY]
    return RunTime(
        training=Range(*(work.full_steps * seconds for seconds in step_seconds)),
        validation=Range(*(FORWARD_SHARE * positions / ranks * seconds for seconds in token_seconds)),
        tasks=Range(*(FORWARD_SHARE * tasks / ranks * seconds for seconds in token_seconds)),
        samples=Range(*(work.sampling_rounds * (weights + overhead) for overhead in SAMPLE_OVERHEAD)),
        checkpoints=Range(*(written + copied for written, copied in zip(disk, copies, strict=True))),
    )
