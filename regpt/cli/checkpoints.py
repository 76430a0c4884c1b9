"""The command checkpoints: list and verify the checkpoints of a run, or remove those that are no longer needed."""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from regpt.base.errors import CHECKPOINT, DONE, UserError
from regpt.base.format import byte_size
from regpt.cli.arguments import add_command, add_run, at_least
from regpt.filesystem.locks import locked

if TYPE_CHECKING:
    from regpt.cli.arguments import Subparsers


def add_checkpoints(commands: "Subparsers") -> None:
    checkpoints = add_command(
        commands,
        "checkpoints",
        run_checkpoints,
        "list and verify the checkpoints of a run; exit code 4 if one is damaged",
        "examples: regpt checkpoints gpt2-modern\n"
        "          regpt checkpoints gpt2-modern --prune --keep-last 2 --keep-every 5000\n\n"
        "--prune shows what would be removed, and with --yes removes it. The newest intact checkpoint is always kept,\n"
        "and so is the one with the lowest validation loss, unless --drop-best is given. A run that is training is\n"
        "refused; there, checkpoint.keep_last does the same.",
    )
    add_run(checkpoints)
    checkpoints.add_argument("--prune", action="store_true", help="show which checkpoints are not needed")
    checkpoints.add_argument("--yes", action="store_true", help="with --prune, remove them")
    checkpoints.add_argument(
        "--keep-last", type=at_least(int, 1), metavar="N", help="with --prune, keep the last N (default: 1)"
    )
    checkpoints.add_argument(
        "--keep-every", type=at_least(int, 1), metavar="N", help="with --prune, also keep multiples of N steps"
    )
    checkpoints.add_argument(
        "--drop-best", action="store_true", help="with --prune, do not keep the lowest validation loss"
    )


def run_checkpoints(arguments: argparse.Namespace) -> int:
    from regpt.tracking.run import find_run

    path = find_run(arguments.run, arguments.runs)
    if arguments.prune:
        return prune(path, arguments)
    for option in ("yes", "keep_last", "keep_every", "drop_best"):
        if getattr(arguments, option):
            raise UserError(f"--{option.replace('_', '-')} is for pruning", "add --prune")
    all_intact, lines = checkpoints_table(path)
    print("\n".join(lines))
    return DONE if all_intact else CHECKPOINT


def prune(run: Path, arguments: argparse.Namespace) -> int:
    """Show what a pruning keeps and removes, and remove it with --yes. The lock keeps a run from training meanwhile."""
    from regpt.checkpoint import store
    from regpt.checkpoint.retention import plan_pruning
    from regpt.recipe.sections import CheckpointRecipe
    from regpt.tracking.layout import RunPaths

    asked = CheckpointRecipe(
        keep_last=arguments.keep_last or 1, keep_every=arguments.keep_every or 0, keep_best=not arguments.drop_best
    )
    with locked(RunPaths(run).lock):
        plan = plan_pruning(run, asked, validation_losses(run))
        every = plan.kept | plan.removed
        for step in sorted(every):
            print(f"step {step:>8,}  {byte_size(size_of(every[step])):>8}  {'keep' if step in plan.kept else 'remove'}")
        size = byte_size(sum(map(size_of, plan.removed.values())))
        count = f"{len(plan.removed):,} of {len(every):,} checkpoints, {size}"
        if not plan.removed:
            print("nothing to remove")
        elif not arguments.yes:
            print(f"would remove {count}; add --yes to remove them")
        else:
            store.remove_partial(run)
            for path in plan.removed.values():
                store.remove(path)
            print(f"removed {count}")
    return DONE


def checkpoints_table(run: Path) -> tuple[bool, list[str]]:
    """Return (whether all are intact, a line per checkpoint: step, size, damage or "intact", validation loss)."""
    from regpt.checkpoint import store
    from regpt.checkpoint.retention import best_step

    losses, found = validation_losses(run), store.list_checkpoints(run)
    best = best_step([step for step, _ in found], losses)
    problems = {step: next(store.find_faults(path), None) for step, path in found}

    def lines() -> Iterator[str]:
        for step, path in found:
            line = f"step {step:>8,}  {byte_size(size_of(path)):>8}  {problems[step] or 'intact'}"
            loss = f"  validation loss {losses[step]:.4f}" if step in losses else ""
            yield line + loss + (" (best)" if step == best else "")

    return not any(problems.values()), list(lines()) or [f"{run}: has no checkpoint yet"]


def validation_losses(run: Path) -> Mapping[int, float]:
    """Return the validation losses of a run by step."""
    from regpt.tracking.journal import read_history

    return {record.step: record.loss for record in read_history(run).validations}


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
