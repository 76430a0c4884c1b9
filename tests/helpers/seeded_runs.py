"""Make runs of one recipe with several seeds, without training: copies of a run of version 0.1 with other losses."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.helpers.compared_runs import edit_journal, edit_recipe

SOURCE = Path(__file__).parent.parent / "fixtures" / "version_0_1" / "runs" / "old-classic"
LAST_STEP = 12
BASE = (10.02, 10.04, 10.03)  # final losses of the seeds 1, 2 and 3
FASTER = (9.90, 9.93, 9.91)


def make_run(path: Path, seed: int, loss: float, *edits: tuple[str, str]) -> Path:
    """Copy the run with another seed and final validation loss, and with texts of its recipe replaced."""
    shutil.copytree(SOURCE, path, ignore=shutil.ignore_patterns("checkpoints", "evidence"))
    for old, new in (("\nseed = 1337\n", f"\nseed = {seed}\n"), *edits):
        edit_recipe(path, old, new)
    edit_journal(path, lambda r: with_loss(r, loss) if (r["kind"], r["step"]) == ("validation", LAST_STEP) else r)
    return path


def with_loss(record: dict[str, Any], loss: float) -> dict[str, Any]:
    """Return a validation with another loss, and its bits per byte in proportion."""
    return {**record, "loss": loss, "bits_per_byte": record["bits_per_byte"] * loss / record["loss"]}


def make_groups(runs: Path, base: Sequence[float] = BASE, faster: Sequence[float] = FASTER) -> list[str]:
    """Make base-1, base-2, ... and faster-1, faster-2, ..., whose recipes differ in the learning rate."""
    for n, loss in enumerate(base, 1):
        make_run(runs / f"base-{n}", n, loss)
    for n, loss in enumerate(faster, 1):
        make_run(runs / f"faster-{n}", n, loss, ("max_lr = 0.01", "max_lr = 0.02"))
    return [f"base-{n}" for n in range(1, len(base) + 1)] + [f"faster-{n}" for n in range(1, len(faster) + 1)]
