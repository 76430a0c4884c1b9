"""Word what a resume has changed: settings, learning rate, and what the machine decides."""

from collections.abc import Iterator
from typing import Any

from regpt.tracking.events import Resumed

# The fields of ComputeEnvironment, as a user reads them.
COMPUTE_NAMES = {
    "device": "the device",
    "precision": "the precision of matrix products",
    "compiled": "torch.compile",
    "threads": "the number of CPU threads",
    "instructions": "the CPU's instruction set",
    "attention": "the attention backends",
    "torch": "the version of torch",
    "cuda": "the version of CUDA",
    "ranks": "the number of ranks",
}


def changes_of_resume(resumed: Resumed) -> Iterator[str]:
    """Yield a line for each change since the checkpoint, with both values."""
    for name, (before, now) in resumed.changed.items():
        yield f"{name} was {before}, is {now}"
    if resumed.learning_rate_changed:
        before, now = resumed.learning_rate_changed
        yield f"the learning rate of the next step was to be {before:.3g}, is {now:.3g}"
    for name, (before, now) in resumed.compute_changed.items():
        yield f"{COMPUTE_NAMES.get(name, name)} was {worded(before)}, is {worded(now)}; results may differ"


def worded(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value) or "none"
