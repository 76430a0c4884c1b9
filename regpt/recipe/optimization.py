"""The recipe's section [optimizer]: the optimizer, its parameter groups and its learning-rate schedule."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from regpt.base.errors import Problem
from regpt.recipe.schema import above_zero, at_least, setting, switch


@dataclass(frozen=True, kw_only=True)
class OptimizerRecipe:
    """The optimizer and its learning-rate schedule: linear warm-up, then a decay."""

    max_lr: float = setting(6e-4, "Learning rate at the end of the warm-up.")
    min_lr: float = setting(6e-5, "Learning rate at the end of the decay.")
    warmup_steps: int = setting(715, "Number of steps in which the learning rate rises linearly to max_lr.")
    schedule: Literal["cosine", "trapezoid"] = switch(
        "cosine",
        "What follows the warm-up; cosine: a decay over the rest of the run; trapezoid: max_lr, then a decay over the"
        " last cooldown_steps (Hägele et al. 2024, arXiv 2405.18392), which `regpt cooldown` can start earlier.",
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
    average_steps: int = switch(
        0,
        "Time constant, in steps, of a moving average of the weights, which is evaluated next to them; 0: none."
        " (modded-nanogpt, track 3, record 45: 150.)",
        on_resume="noted",
    )
    average_share: float = switch(
        0.6,
        "Share of that average in the averaged weights; the rest is the last weights. (0.6 in the same record.)",
        on_resume="noted",
    )
    beta1: float = setting(0.9, "AdamW: decay rate of the mean of gradients.")
    beta2: float = setting(0.95, "AdamW: decay rate of the mean of squared gradients.")
    eps: float = setting(1e-8, "AdamW: epsilon added to the denominator.")
    weight_decay: float = setting(0.1, "Weight decay of tensors with two or more dimensions.")
    grad_clip: float = setting(1.0, "Largest norm of all gradients together; larger ones are scaled down to it.")
    kind: Literal["adamw", "muon"] = switch(
        "adamw",
        "Optimizer; muon: Muon for the matrices inside blocks, AdamW for embedding, head and vectors"
        " (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).",
    )
    embedding_lr: float = switch(0.0, "Peak learning rate of token, position and value embeddings; 0: max_lr.")
    head_lr: float = switch(0.0, "Peak learning rate of an untied head; 0: max_lr.")
    vector_lr: float = switch(0.0, "Peak learning rate of norms, biases, scalars and gates; 0: max_lr.")
    cautious_weight_decay: bool = switch(
        False, "Decay a weight only where the update moves it towards zero (Chen et al. 2025, arXiv 2510.12402)."
    )
    weight_decay_schedule: Literal["constant", "lr"] = switch(
        "constant", "Weight decay over the run; lr: scaled by the learning rate relative to its peak, as in nanochat."
    )
    muon_lr: float = switch(0.02, "Muon: peak learning rate.")
    muon_momentum: float = switch(0.95, "Muon: decay rate of the mean of gradients, in Nesterov's form.")
    muon_momentum_start: float = switch(0.85, "Muon: momentum at the first step, from which it rises linearly.")
    muon_momentum_warmup_steps: int = switch(
        300, "Muon: number of steps in which the momentum rises (modded-nanogpt); 0: constant."
    )
    muon_weight_decay: float = switch(0.0, "Muon: weight decay; each step subtracts learning rate x decay x weight.")
    muon_scale: Literal["original", "match_rms_adamw"] = switch(
        "original",
        "Muon: factor of the learning rate by a matrix's shape; original: max(1, rows / columns)^0.5; match_rms_adamw:"
        " 0.2 max(rows, columns)^0.5, for rates like AdamW's (Liu et al. 2025, arXiv 2502.16982).",
    )
    newton_schulz_steps: int = switch(5, "Muon: number of Newton-Schulz iterations that orthogonalize an update.")
    normuon: bool = switch(
        False, "Muon: equalize the rows of an update by their mean squares (NorMuon, Li et al. 2025, arXiv 2510.05491)."
    )
    normuon_beta2: float = switch(0.95, "NorMuon: decay rate of the mean squares of rows.")

    def problems(self) -> Iterator[Problem]:
        yield from above_zero(self, "max_lr", "eps", "grad_clip", "muon_lr")
        yield from at_least(self, 0, "min_lr", "warmup_steps", "weight_decay", "cooldown_steps", "adam_cooldown_steps")
        yield from at_least(self, 0, "average_steps")
        yield from at_least(self, 0, "embedding_lr", "head_lr", "vector_lr")
        yield from at_least(self, 0, "muon_weight_decay", "muon_momentum_warmup_steps")
        yield from at_least(self, 1, "newton_schulz_steps")
        if self.min_lr > self.max_lr:
            yield Problem(
                "optimizer.min_lr",
                f"optimizer.min_lr = {self.min_lr} is above optimizer.max_lr = {self.max_lr}",
                ("optimizer.max_lr",),
            )
        for name in ("beta1", "beta2", "muon_momentum", "muon_momentum_start", "normuon_beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                yield Problem(f"optimizer.{name}", f"optimizer.{name} = {getattr(self, name)} is not in [0, 1)")
        if not 0.0 < self.average_share <= 1.0:
            yield Problem(
                "optimizer.average_share", f"optimizer.average_share = {self.average_share} is not above 0 and up to 1"
            )
        yield from self.schedule_problems()
        if self.normuon and self.kind != "muon":
            yield Problem(
                "optimizer.normuon",
                f"optimizer.normuon = true needs optimizer.kind = 'muon', not '{self.kind}'",
                ("optimizer.kind",),
            )

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

        if self.adam_cooldown_steps and self.kind != "muon":
            yield Problem(
                "optimizer.adam_cooldown_steps",
                f"optimizer.adam_cooldown_steps = {self.adam_cooldown_steps} needs optimizer.kind = 'muon', not"
                f" '{self.kind}'; set optimizer.cooldown_steps",
                ("optimizer.kind",),
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

    @property
    def has_role_groups(self) -> bool:
        """Return whether parameters are grouped by their role in the model, not only into matrices and vectors."""
        return self.kind == "muon" or any((self.embedding_lr, self.head_lr, self.vector_lr))
