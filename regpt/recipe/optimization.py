"""The recipe's section [optimizer]: the optimizer and its learning-rate schedule."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from regpt.base.errors import Problem
from regpt.recipe.schema import above_zero, at_least, setting, switch


@dataclass(frozen=True, kw_only=True)
class OptimizerRecipe:
    """AdamW and its learning-rate schedule: linear warm-up, then a decay."""

    max_lr: float = setting(6e-4, "Learning rate at the end of the warm-up.")
    min_lr: float = setting(6e-5, "Learning rate at the end of the decay.")
    warmup_steps: int = setting(715, "Number of steps in which the learning rate rises linearly to max_lr.")
    schedule: Literal["cosine", "trapezoid"] = switch(
        "cosine",
        "What follows the warm-up; cosine: a decay over the rest of the run; trapezoid: max_lr, then a decay over the"
        " last cooldown_steps (Hägele et al. 2024, arXiv 2405.18392).",
    )
    cooldown_steps: int = switch(
        0,
        "With schedule = 'trapezoid', number of last steps in which the learning rate falls to min_lr; 0: none.",
        on_resume="noted",
    )
    cooldown_shape: Literal["linear", "1-sqrt"] = switch(
        "linear",
        "Shape of the cooldown; 1-sqrt: 1 minus the root of its progress, better than linear in Hägele et al.",
        on_resume="noted",
    )
    adam_cooldown_steps: int = switch(
        0,
        "Number of last steps in which the groups of Adam cool down where Muon updates the matrices; 0: cooldown_steps."
        " (modded-nanogpt, track 3, record 24: 0.4 of the run, matrices 0.8.)",
        on_resume="noted",
    )
    beta1: float = setting(0.9, "AdamW: decay rate of the mean of gradients.")
    beta2: float = setting(0.95, "AdamW: decay rate of the mean of squared gradients.")
    eps: float = setting(1e-8, "AdamW: epsilon added to the denominator.")
    weight_decay: float = setting(0.1, "Weight decay of tensors with two or more dimensions.")
    grad_clip: float = setting(1.0, "Largest norm of all gradients together; larger ones are scaled down to it.")

    def problems(self) -> Iterator[Problem]:
        yield from above_zero(self, "max_lr", "eps", "grad_clip")
        yield from at_least(self, 0, "min_lr", "warmup_steps", "weight_decay", "cooldown_steps", "adam_cooldown_steps")
        if self.min_lr > self.max_lr:
            yield Problem(
                "optimizer.min_lr",
                f"optimizer.min_lr = {self.min_lr} is above optimizer.max_lr = {self.max_lr}",
                ("optimizer.max_lr",),
            )
        for name in ("beta1", "beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                yield Problem(f"optimizer.{name}", f"optimizer.{name} = {getattr(self, name)} is not in [0, 1)")
        yield from self.schedule_problems()

    def schedule_problems(self) -> Iterator[Problem]:
        """Check that a cooldown belongs to a trapezoid."""
        for name, off in (("cooldown_steps", 0), ("cooldown_shape", "linear"), ("adam_cooldown_steps", 0)):
            value = getattr(self, name)
            if self.schedule != "trapezoid" and value != off:
                yield Problem(
                    f"optimizer.{name}",
                    f"optimizer.{name} = {value!r} needs optimizer.schedule = 'trapezoid', it is '{self.schedule}'",
                    ("optimizer.schedule",),
                )

    def length_problems(self, max_steps: int) -> Iterator[Problem]:
        """Check that warm-up and cooldown fit into the steps of the run."""
        for name in ("cooldown_steps", "adam_cooldown_steps"):
            steps = getattr(self, name)
            if steps and self.warmup_steps + steps > max_steps:
                most = max(0, max_steps - self.warmup_steps)
                yield Problem(
                    f"optimizer.{name}",
                    f"optimizer.warmup_steps = {self.warmup_steps:,} and optimizer.{name} = {steps:,} do not fit into"
                    f" run.max_steps = {max_steps:,}; set optimizer.{name} to {most:,} or less",
                    ("optimizer.warmup_steps", "run.max_steps"),
                )
