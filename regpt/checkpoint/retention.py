"""Which checkpoints of a run are kept, and the removal of the others, by the run or by `regpt checkpoints --prune`."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from regpt.checkpoint import store
from regpt.recipe.sections import CheckpointRecipe


@dataclass(frozen=True)
class Pruning:
    """The checkpoints of a run by step, divided into those that are kept and those that are not."""

    kept: dict[int, Path]
    removed: dict[int, Path]


def best_step(steps: Collection[int], losses: Mapping[int, float]) -> int | None:
    """Return the step with the lowest validation loss; None if none of them was validated with a finite loss."""
    validated = [step for step in steps if math.isfinite(losses.get(step, math.nan))]
    return min(validated, key=lambda step: losses[step], default=None)


def kept_steps(steps: Collection[int], asked: CheckpointRecipe, losses: Mapping[int, float]) -> set[int]:
    """Return the steps that are kept: the last ones, multiples and the best, as asked; all with keep_last = 0.

    Step 0, with the weights that a run started from, is kept always: a rollback may need it.
    """
    if asked.keep_last == 0:
        return set(steps)
    kept = {*sorted(steps)[-asked.keep_last :], *(step for step in steps if step == 0)}
    if asked.keep_every:
        kept |= {step for step in steps if step % asked.keep_every == 0}
    best = best_step(steps, losses) if asked.keep_best else None
    return kept if best is None else kept | {best}


def plan_pruning(run: Path, asked: CheckpointRecipe, losses: Mapping[int, float]) -> Pruning:
    """Divide a run's checkpoints. The newest intact one is always kept; CheckpointError if none is intact."""
    found = dict(store.list_checkpoints(run))
    newest = store.newest_valid(run)
    kept = kept_steps(found, asked, losses) | {step for step, path in found.items() if path == newest}
    return Pruning(
        {step: path for step, path in found.items() if step in kept},
        {step: path for step, path in found.items() if step not in kept},
    )


def prune(run: Path, asked: CheckpointRecipe, losses: Mapping[int, float]) -> list[Path]:
    """Remove checkpoints that the recipe does not keep, and return them. Removes none unless the newest is intact."""
    found = dict(store.list_checkpoints(run))
    kept = kept_steps(found, asked, losses)
    removed = [path for step, path in found.items() if step not in kept]
    if not removed or next(store.find_faults(found[max(found)]), None) is not None:
        return []
    for path in removed:
        store.remove(path)
    return removed
