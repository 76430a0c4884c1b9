"""The section [run] of a recipe."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from regpt.base.errors import Problem
from regpt.recipe.schema import at_least, setting, switch

SINKS = ("tensorboard", "wandb", "trackio")


@dataclass(frozen=True, kw_only=True)
class RunRecipe:
    """Length, device, precision and parallelism of a run."""

    seed: int = setting(1337, "Seed of the initial weights, the data order and dropout.")
    weights_seed: int = switch(
        0, "Seed of the initial weights, where it differs from run.seed, as for a run in the same order; 0: run.seed."
    )
    init_from: str = switch(
        "",
        "Model whose weights and shape the run starts with: a run, a checkpoint, a Hugging Face directory, or"
        " hub:OWNER/NAME; empty: weights from the seed.",
    )
    max_steps: int = setting(19_073, "Number of optimizer steps.", on_resume="noted")
    device: Literal["auto", "cpu", "cuda", "mps"] = setting(
        "auto", "Device to train on; auto: CUDA, else Apple MPS, else the CPU.", on_resume="free"
    )
    precision: Literal["auto", "bfloat16", "float32"] = setting(
        "auto", "Precision of matrix products; auto: bfloat16 where the hardware supports it."
    )
    matmul_precision: Literal["highest", "high", "medium"] = setting(
        "high", "Precision of float32 matrix products; high: TF32 on CUDA."
    )
    compile: Literal["auto", "on", "off"] = setting(
        "auto", "Use torch.compile; auto: on CUDA only. On a CPU it is no faster."
    )
    threads: int = setting(0, "Number of CPU threads; 0: one per core.", on_resume="free")
    deterministic: bool = setting(
        False, "Use only deterministic operations, so that two runs give the same bits; slower on a GPU."
    )
    sinks: str = setting(
        "",
        "Trackers that also receive the metrics: tensorboard, wandb, trackio, or several separated by commas.",
        on_resume="free",
    )
    time_limit: str = setting(
        "", "Time limit after which the run saves and stops, as h:mm:ss; empty: none.", on_resume="free"
    )
    price_per_hour: float = setting(
        0.0, "Price of the machine in USD per hour; 0: no cost in the report.", on_resume="free"
    )
    parallel: Literal["ddp", "fsdp"] = setting(
        "ddp",
        "Parallelism on several ranks; ddp: a full model on each rank; fsdp: a shard of it on each rank,"
        " for models that do not fit one device.",
        on_resume="noted",
    )
    strict_sum: bool = setting(
        False,
        "With ddp, add gradients in a fixed order, so that any number of ranks gives the same bits; slower.",
        on_resume="noted",
    )
    gradients_reduced: Literal["step", "micro-batch"] = setting(
        "step",
        "When ranks reduce their gradients; micro-batch (fsdp only): less memory, more communication.",
        on_resume="noted",
    )
    activation_checkpointing: bool = setting(
        False, "Recompute each block in the backward pass: less memory, about a third more compute.", on_resume="noted"
    )
    rank_timeout: int = setting(600, "Seconds that a rank waits for the others before it fails.", on_resume="free")

    @property
    def initial_seed(self) -> int:
        """Return the seed of the initial weights."""
        return self.weights_seed or self.seed

    @property
    def sink_names(self) -> list[str]:
        return [name.strip() for name in self.sinks.split(",") if name.strip()]

    @property
    def time_limit_seconds(self) -> float:
        """Infinity if there is no limit or it cannot be parsed."""
        words = self.time_limit.split(":")
        if len(words) != 3 or not all(word.isdecimal() for word in words):
            return math.inf
        hours, minutes, seconds = map(int, words)
        return 3600.0 * hours + 60 * minutes + seconds

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "max_steps", "rank_timeout")
        yield from at_least(self, 0, "seed", "weights_seed", "threads", "price_per_hour")
        if self.parallel == "fsdp" and self.strict_sum:
            yield Problem(
                "run.strict_sum",
                "run.strict_sum = true needs full gradients on each rank; use it with run.parallel = 'ddp'",
                ("run.parallel",),
            )
        if self.parallel == "ddp" and self.gradients_reduced == "micro-batch":
            yield Problem(
                "run.gradients_reduced",
                "run.gradients_reduced = 'micro-batch' works only with run.parallel = 'fsdp'; use 'step'",
                ("run.parallel",),
            )
        for name in self.sink_names:
            if name not in SINKS:
                yield Problem("run.sinks", f"run.sinks = '{self.sinks}': '{name}' is not one of {', '.join(SINKS)}")
        if self.time_limit and not 0 < self.time_limit_seconds < math.inf:
            yield Problem(
                "run.time_limit",
                f"run.time_limit = '{self.time_limit}' is not a time; write hours:minutes:seconds, as in 23:50:00",
            )
