"""The recipe's section [optimizer]: the optimizer and its learning-rate schedule."""

from collections.abc import Iterator
from dataclasses import dataclass

from regpt.base.errors import Problem
from regpt.recipe.schema import above_zero, at_least, setting


@dataclass(frozen=True, kw_only=True)
class OptimizerRecipe:
    """AdamW and its learning-rate schedule: linear warm-up, then cosine decay."""

    max_lr: float = setting(6e-4, "Learning rate at the end of the warm-up.")
    min_lr: float = setting(6e-5, "Learning rate at the end of the cosine decay.")
    warmup_steps: int = setting(715, "Number of steps in which the learning rate rises linearly to max_lr.")
    beta1: float = setting(0.9, "AdamW: decay rate of the mean of gradients.")
    beta2: float = setting(0.95, "AdamW: decay rate of the mean of squared gradients.")
    eps: float = setting(1e-8, "AdamW: epsilon added to the denominator.")
    weight_decay: float = setting(0.1, "Weight decay of tensors with two or more dimensions.")
    grad_clip: float = setting(1.0, "Largest norm of all gradients together; larger ones are scaled down to it.")

    def problems(self) -> Iterator[Problem]:
        yield from above_zero(self, "max_lr", "eps", "grad_clip")
        yield from at_least(self, 0, "min_lr", "warmup_steps", "weight_decay")
        if self.min_lr > self.max_lr:
            yield Problem(
                "optimizer.min_lr",
                f"optimizer.min_lr = {self.min_lr} is above optimizer.max_lr = {self.max_lr}",
                ("optimizer.max_lr",),
            )
        for name in ("beta1", "beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                yield Problem(f"optimizer.{name}", f"optimizer.{name} = {getattr(self, name)} is not in [0, 1)")
