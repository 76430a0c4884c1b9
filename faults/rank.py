"""Run one rank with an injected fault, under torchrun: python -m faults.rank FAULT RANK ARGUMENTS…

The fault acts once: not after torchrun has restarted the ranks.
"""

import os
import sys
import time
from collections.abc import Callable
from functools import partial

from faults.process import at_call, kill_this_process
from regpt.base import files
from regpt.checkpoint import store
from regpt.cli.main import main
from regpt.data.batches import Batch
from regpt.parallel.model import Parallel
from regpt.tracking.journal import SkippedRecord, StepRecord
from regpt.training import gradients, periodic_eval, trainer


def poison_loss(steps: range) -> None:
    """Make the loss of these steps infinite."""
    real = trainer.Trainer.train_step

    def train_step(self: trainer.Trainer, step: int, batch: Batch) -> StepRecord | SkippedRecord:
        forward = self.model.forward
        if self.state.guard.batch_of(step) in steps:
            self.model.__dict__["forward"] = lambda *given: forward(*given) * float("inf")
        try:
            return real(self, step, batch)
        finally:
            self.model.__dict__.pop("forward", None)

    trainer.Trainer.train_step = train_step  # type: ignore[method-assign]


def poison_gradient(number: int) -> None:
    """Set one element of one gradient to NaN after the ranks have reduced it."""
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


FAULTS: dict[str, Callable[[], None]] = {
    "nothing": lambda: None,
    "killed after the first file": partial(at_call, store, "write_tensors", 3, kill_this_process, after=True),
    "killed after its last file": partial(at_call, store, "write_tensors", 4, kill_this_process, after=True),
    "killed before the manifest": partial(at_call, store, "write_json", 4, kill_this_process, only="manifest.json"),
    "killed before the rename": partial(at_call, files, "flush_directory", 5, kill_this_process, only=".partial"),
    "killed in a step": partial(at_call, gradients.Gradients, "forward_and_backward", 13, kill_this_process),
    "killed in validation": partial(at_call, periodic_eval, "validation", 2, kill_this_process),
    "killed in sampling": partial(at_call, periodic_eval, "continuations", 1, kill_this_process),
    "slow to save": lambda: at_call(store, "write_tensors", 1, partial(time.sleep, 2.0)),
    "fails in a step": partial(at_call, gradients.Gradients, "forward_and_backward", 13, fail),
    "infinite loss in one step": partial(poison_loss, range(17, 18)),
    "infinite loss in twenty steps": partial(poison_loss, range(17, 37)),
    "NaN in one gradient": partial(poison_gradient, 18),
}


if __name__ == "__main__":
    name, rank, *arguments = sys.argv[1:]
    if os.environ["RANK"] == rank and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        FAULTS[name]()
    sys.exit(main(arguments))
