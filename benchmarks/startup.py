"""Measure how long commands take to start: to the first text of --help, the first step of a run, the first token.

    python -m benchmarks.startup

Each round is a new process. The times to the first step and token are those of a whole command that takes one step of
the 7M miniature, and one that draws one token from it: the start, the work and the end.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.history import Goal, Section, measure_of

ROUNDS = 7
GOALS = {"regpt --help": Goal(0.4, at_most=True)}
TRAIN = ["train", "demo-modern"]
ONE_STEP = [
    "run.max_steps=1",
    "optimizer.warmup_steps=0",
    "data.total_batch_tokens=256",
    "data.micro_batch=1",
    "evaluation.validation_batches=1",
    "evaluation.validation_batch_size=1",
    "evaluation.hellaswag_every=0",
    "evaluation.sample_count=0",
    "checkpoint.every=0",
]


def report() -> Section:
    """Measure and print every command."""
    with tempfile.TemporaryDirectory() as folder:
        data = f"data.path={folder}/data"
        seconds_of(["prepare", "demo-modern", data])
        commands = {
            "regpt --help": ["--help"],
            "regpt train, one step": [*TRAIN, "--runs", f"{folder}/runs", "--name", "NAME", data, *ONE_STEP],
            "regpt sample, one token": ["sample", f"{folder}/runs/run-0", "--tokens", "1", "--count", "1"],
        }  # fmt: skip
        measures = []
        for name, words in commands.items():
            seconds = [
                seconds_of([word.replace("NAME", f"run-{number}") for word in words]) for number in range(ROUNDS)
            ]
            measures.append(measure_of(f"{name}: whole command", seconds, GOALS.get(name), "s"))
            print(f"{measures[-1].name} {measures[-1].shown}", flush=True)
    lines = [
        "| command | time |",
        "|---|---|",
        *(f"| `{name}` | {one.shown} |" for name, one in zip(commands, measures, strict=True)),
    ]
    return Section("Starting", "\n".join(lines), tuple(measures))


def seconds_of(words: list[str]) -> float:
    """Return the seconds of a whole command."""
    began_at = time.perf_counter()
    subprocess.run([sys.executable, "-m", "regpt", *words], check=True, stdout=subprocess.DEVNULL, cwd=Path.cwd())
    return time.perf_counter() - began_at


if __name__ == "__main__":
    report()
