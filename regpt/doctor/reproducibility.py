"""Check that a run can be reproduced: from the start, after a kill, from its checkpoints, and on several ranks."""

from collections.abc import Sequence

import torch
from safetensors.torch import load_file

from regpt.base.format import byte_size
from regpt.checkpoint import store
from regpt.doctor.checks import CheckFailed, CheckSkipped
from regpt.doctor.rehearsal import KILLED_AT, SAVED_AT, STEPS, Rehearsal
from regpt.tracking.journal import StepRecord, read_history
from regpt.tracking.layout import RunPaths

ROUNDING = 1e-3  # relative difference of losses on a device that does not compute sums in a fixed order


def check_start(rehearsal: Rehearsal) -> str:
    """Compare the first steps of two runs."""
    one, other = (read_history(run).steps[:KILLED_AT] for run in (rehearsal.run, rehearsal.killed))
    return compare_steps(rehearsal, one, other, "two starts")


def check_saved(rehearsal: Rehearsal) -> str:
    """Compare the checkpoints with their hashes."""
    found = store.list_checkpoints(rehearsal.run)
    faults = [f"step {step}: {fault}" for step, path in found for fault in store.find_faults(path)]
    steps = [step for step, _ in found]
    expected = list(range(SAVED_AT, STEPS + 1, SAVED_AT))
    if faults or steps != expected:
        problem = "; ".join(faults) or f"found checkpoints of steps {steps}, expected {expected}"
        raise CheckFailed(problem, "the disk loses or changes data; use another one with --runs")
    size = sum(file.stat().st_size for file in found[-1][1].iterdir())
    return f"{len(found)} checkpoints of {byte_size(size)} match their hashes"


def check_resume(rehearsal: Rehearsal) -> str:
    """Compare a run that was killed and resumed with an uninterrupted one."""
    straight, resumed = (
        rehearsal.run,
        rehearsal.resumed,
    )  # the uninterrupted run first: an error in it would also occur in the other
    message = compare_steps(
        rehearsal, read_history(straight).steps, read_history(resumed).steps, "uninterrupted and resumed"
    )
    one, other = (load_file(RunPaths(run).checkpoint(STEPS) / "model.safetensors") for run in (straight, resumed))
    difference = max(float((one[name] - other[name]).abs().max()) for name in one)
    if is_deterministic(rehearsal) and difference:
        raise CheckFailed(
            f"the losses are equal, but the weights differ by up to {difference:.2g}",
            "the optimizer state is not restored",
        )
    return f"killed after step {KILLED_AT}, resumed from step {SAVED_AT}: {message}"


def is_deterministic(rehearsal: Rehearsal) -> bool:
    """Return whether the device computes sums in a fixed order."""
    return rehearsal.device.torch_device.type == "cpu" or rehearsal.recipe.run.deterministic


def compare_steps(rehearsal: Rehearsal, one: Sequence[StepRecord], other: Sequence[StepRecord], what: str) -> str:
    """Compare steps, batches and losses of two runs. Raises CheckFailed if they differ by more than rounding."""
    if [record.step for record in one] != [record.step for record in other]:
        raise CheckFailed(
            f"{what}: steps {[r.step for r in one]} and {[r.step for r in other]}", "compare both journals"
        )
    for record, second in zip(one, other, strict=True):
        if record.batch != second.batch:
            raise CheckFailed(
                f"{what}: step {record.step} has different batches",
                "run `regpt data verify`: the dataset may have changed",
            )
    difference = max(
        abs(record.loss - second.loss) / abs(record.loss) for record, second in zip(one, other, strict=True)
    )
    if difference == 0.0:
        return f"{len(one)} steps with the same batches and bit-identical losses"
    message = f"{what}: the same batches, but losses differ by up to {difference:.1e} (relative)"
    if is_deterministic(rehearsal) or difference > ROUNDING:
        raise CheckFailed(
            message, "set run.deterministic=true; if that does not help, the computation is not deterministic"
        )
    return f"{message}; run.deterministic=true makes them bit-identical"


def check_ranks(rehearsal: Rehearsal) -> str:
    """Compare a run on several ranks with a run on one."""
    if rehearsal.ranks == 1:
        raise CheckSkipped("only one rank; use --ranks N to test several")
    alone, together = read_history(rehearsal.run).steps, read_history(rehearsal.on_ranks).steps
    if [record.batch for record in alone] != [record.batch for record in together]:
        raise CheckFailed(
            f"{rehearsal.ranks} ranks read other batches than one", "check that all ranks use the same data.path"
        )
    difference = max(abs(a.loss - b.loss) / abs(a.loss) for a, b in zip(alone, together, strict=True))
    allowed = 1e-5 if rehearsal.device.precision == torch.float32 else 5e-3
    losses = "bit-identical losses" if difference == 0.0 else f"losses within {difference:.1e} (relative)"
    message = f"{rehearsal.ranks} ranks and 1 rank: the same batches, {losses}"
    if not difference <= allowed:
        raise CheckFailed(message, "try run.strict_sum=true, which removes rounding differences, and NCCL_DEBUG=INFO")
    return message
