"""Measure the cost of checkpoints: training with one every 20 steps compared with training without.

    python -m benchmarks.checkpoints

The 7M model trains 100 steps of 1,024 tokens; each side is a separate `regpt train` process, in turn. Also measures how
long training waits for a checkpoint: with `checkpoint.background = false` for all of it.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.history import Section, measure_of
from regpt.checkpoint.saver import AsyncCheckpointer
from regpt.model.gpt import GPT
from regpt.optimizer.making import make_optimizer
from regpt.recipe.settings import load_recipe
from regpt.tracking.journal import read_history

ROUNDS = 3
STEPS = 100
SIDES = {
    "none": ["checkpoint.every=0"],
    "every 20 steps, in the background": ["checkpoint.every=20"],
    "every 20 steps, while training waits": ["checkpoint.every=20", "checkpoint.background=false"],
}
SETTINGS = [
    f"run.max_steps={STEPS}",
    "evaluation.validation_every=0",
    "evaluation.validation_batches=1",
    "evaluation.sample_count=0",
    "evaluation.hellaswag_every=0",
]


def report() -> Section:
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        settings = [*SETTINGS, "data.source=stdlib", f"data.path={folder}/data"]
        train(folder, "warm", [*settings, "run.max_steps=1"])  # prepares the data
        for number in range(ROUNDS):
            for name, side in SIDES.items():
                seconds[name].append(train(folder, f"{len(side)}{number}{len(name)}", [*settings, *side]))
        sizes = [record.bytes for record in read_history(Path(folder) / f"10{len('none')}").checkpoints]
    lines, measures = ["| checkpoints | time | relative to none |", "|---|---|---|"], []
    for name, of_name in seconds.items():
        ratios = [mine / none for mine, none in zip(of_name, seconds["none"], strict=True)]
        if name != "none":
            measures.append(measure_of(f"checkpoints {name}: time / that of none", ratios))
        lines.append(
            f"| {name} | {statistics.median(of_name):.1f} s"
            f" | **{statistics.median(ratios):.3f}** ({min(ratios):.3f} to {max(ratios):.3f}) |"
        )
    about = (
        f"7M parameters, {STEPS} steps of 1,024 tokens, separate processes in turn, {ROUNDS} rounds; a checkpoint is"
        f" {sizes[-1] / 1e6:.0f} MB. Every run saves after the last step."
    )
    text = "\n".join([about, "", *lines, "", waiting()])
    print(text, flush=True)
    return Section("Checkpoints", text, tuple(measures))


def waiting(times: int = 10) -> str:
    """Measure how long training waits for a save (the copy), and how long the background part takes."""
    recipe = load_recipe("demo-modern")
    model = GPT(recipe.model)
    model.initialize(1)
    optimizer = make_optimizer(model, recipe)
    tokens = torch.randint(0, 50_257, (4, recipe.model.block_size + 1))
    model(tokens[:, :-1], tokens[:, 1:]).backward()
    optimizer.step()
    copies, writes = [], []
    with tempfile.TemporaryDirectory() as folder, AsyncCheckpointer(Path(folder), recipe.checkpoint) as saver:
        for step in range(times):
            began_at = time.perf_counter()
            saver.start(step, model, optimizer, {}, {})
            copies.append(time.perf_counter() - began_at)
            saved = saver.collect(wait=True)
            assert saved is not None
            writes.append(saved.seconds)
    return (
        f"Training waits only for the copy, {statistics.median(copies) * 1e3:.0f} ms ({max(copies) * 1e3:.0f} ms the"
        f" first time); checking, writing, hashing and flushing take {statistics.median(writes) * 1e3:.0f} ms in"
        " the background."
    )


def train(folder: str, name: str, settings: list[str]) -> float:
    command = [sys.executable, "-m", "regpt", "train", "demo-modern", "--runs", folder, "--name", name, *settings]
    began_at = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began_at


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m benchmarks.checkpoints", description=__doc__).parse_args()
    report()
