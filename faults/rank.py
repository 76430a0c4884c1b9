"""One rank of a run with a fault planted in it, for torchrun to start: python -m faults.rank PLANT RANK WORDS…

The fault acts once: not in ranks that torchrun starts anew.
"""

import os
import sys
import time
from collections.abc import Callable
from functools import partial

from faults.victim import at_call, kill_myself
from regpt.base import files
from regpt.checkpoint import store
from regpt.cli.main import main
from regpt.data.batches import Batch
from regpt.tracking.journal import SkippedRecord, StepRecord
from regpt.train import gradients, periodic_eval, trainer
from regpt.train.parallel import Parallel


def poison_loss(steps: range) -> None:
    """The forward passes of these steps give infinity."""
    real = trainer.Trainer.train_step

    def train_step(self: trainer.Trainer, step: int, batch: Batch) -> StepRecord | SkippedRecord:
        forward = self.model.forward
        if self.guard.batch_of(step) in steps:
            self.model.__dict__["forward"] = lambda *given: forward(*given) * float("inf")
        try:
            return real(self, step, batch)
        finally:
            self.model.__dict__.pop("forward", None)

    trainer.Trainer.train_step = train_step  # type: ignore[method-assign]


def poison_gradient(number: int) -> None:
    """One number of one gradient is none, after the ranks have reduced it."""
    real, calls = Parallel.squared_norm, 0

    def squared_norm(self: Parallel) -> float:
        nonlocal calls
        calls += 1
        if calls == number:
            self.gradients()[3].view(-1)[0] = float("nan")
        return real(self)

    Parallel.squared_norm = squared_norm  # type: ignore[method-assign]


def fail() -> None:
    raise RuntimeError("a fault of our own")


PLANTS: dict[str, Callable[[], None]] = {
    "nothing": lambda: None,
    "killed after its first file": partial(at_call, store, "write_tensors", 3, kill_myself, after=True),
    "killed after its last file": partial(at_call, store, "write_tensors", 4, kill_myself, after=True),
    "killed before the manifest": partial(at_call, store, "write_json", 4, kill_myself, only="manifest.json"),
    "killed before the rename": partial(at_call, files, "flush_directory", 5, kill_myself, only=".partial"),
    "killed in a step": partial(at_call, gradients.Gradients, "forward_and_backward", 13, kill_myself),
    "killed in validation": partial(at_call, periodic_eval, "validation", 2, kill_myself),
    "killed in sampling": partial(at_call, periodic_eval, "continuations", 1, kill_myself),
    "slow to save": lambda: at_call(store, "write_tensors", 1, partial(time.sleep, 2.0)),
    "fails in a step": partial(at_call, gradients.Gradients, "forward_and_backward", 13, fail),
    "no number in one loss": partial(poison_loss, range(17, 18)),
    "no number in twenty losses": partial(poison_loss, range(17, 37)),
    "no number in one gradient": partial(poison_gradient, 18),
}


if __name__ == "__main__":
    name, rank, *words = sys.argv[1:]
    if os.environ["RANK"] == rank and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        PLANTS[name]()
    sys.exit(main(words))
