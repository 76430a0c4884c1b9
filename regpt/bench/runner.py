"""Measure a recipe on this machine: steps, other parts, memory, next to the prediction and published speeds."""

from pathlib import Path

import torch

from regpt.bench.parts import time_parts
from regpt.bench.prediction import predict
from regpt.bench.result import BenchResult, Machine, Parts
from regpt.bench.steps import train_for
from regpt.console.training import Console
from regpt.machine.device import Device, known_card, open_device
from regpt.plan.published_speeds import published_speeds
from regpt.plan.workload import count_work
from regpt.recipe.recipe import Recipe


def bench(
    recipe: Recipe, folder: Path, runs: Path, seconds: float, console: Console, steps_only: bool = False
) -> BenchResult:
    """Train on synthetic tokens for about `seconds` after a warm-up, then time the other parts of a run once.

    With `steps_only` nothing else is timed or predicted.

    A checkpoint is written in `folder` and stays there. Raises UserError if not even one sequence fits in memory.
    """
    device = open_device(recipe.run)
    for note in device.notes:
        console.note(note)
    console.start_bar("bench", total=seconds)
    trained = train_for(recipe, device, console, seconds)
    parts, prediction = Parts(None, None, None, None), None
    if not steps_only:
        parts = time_parts(trained.recipe, trained.parallel, folder, console)
        console.update_bar("prediction")
        prediction = predict(trained.recipe, device, runs)
    card = known_card(device.torch_device)
    return BenchResult(
        recipe=trained.recipe,
        configured_micro_batch=recipe.data.micro_batch,
        machine=describe(device),
        work=count_work(trained.recipe),
        steps=trained.times,
        parts=parts,
        memory=trained.memory,
        other_share=trained.other_share,
        prediction=prediction,
        published=published_speeds(card, recipe.model) if card is not None else (),
        steps_only=steps_only,
    )


def describe(device: Device) -> Machine:
    return Machine(
        name=device.name,
        type=device.torch_device.type,
        precision=device.precision_name,
        compiled=device.compiled,
        torch=torch.__version__,
        peak_flops=device.peak_flops,
        peak_source=device.peak_source,
    )
