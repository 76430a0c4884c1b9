"""Measure the endpoint: batched decoding against one request after another, and many clients at once.

    python -m benchmarks.endpoint speed                      about two minutes, no server
    python -m benchmarks.endpoint load MODEL --runs FOLDER   rounds of 24 clients, with the server's memory after each

`speed` takes models with random weights in the sizes of two recipes. Both ways alternate, and each repetition gives a
ratio of its own, so that a machine that becomes slower in between does not decide.
"""

import argparse
import queue
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import torch

from benchmarks.history import Goal, Measure, Section, measure_of
from regpt.data.tokenizer import GPT2_TOKENIZER
from regpt.endpoint.engine import Engine, Job, JobEnded, JobEvent
from regpt.generation.drawing import Sampling
from regpt.interop.open_model import LoadedModel
from regpt.model.gpt import GPT
from regpt.recipe.settings import load_recipe
from tests.helpers.clients import CLIENTS, Round
from tests.helpers.served_runs import served

SIZES = ["gpt2-modern", "demo-modern"]
NEW_TOKENS = 32  # of each request
REQUESTS = 8
GOAL = Goal(3.0)
PROMPT_TOKENS = 16
RULES = {"temperature 1": Sampling(), "greedy": Sampling(temperature=0.0), "top-k 50": Sampling(top_k=50)}


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m benchmarks.endpoint", description=__doc__)
    parts = options.add_subparsers(dest="part", required=True)
    speed = parts.add_parser("speed")
    speed.add_argument("recipes", nargs="*", default=SIZES, help="default: the 124M model and the 7M miniature")
    speed.add_argument("--repetitions", type=int, default=5)
    speed.add_argument("--rule", choices=RULES, action="append", help="how tokens are drawn; default: each way")
    load = parts.add_parser("load")
    load.add_argument("model")
    load.add_argument("--runs", type=Path, default=Path("runs"))
    load.add_argument("--rounds", type=int, default=20)
    arguments = options.parse_args()
    if arguments.part == "load":
        return measure_load(arguments.model, arguments.runs, arguments.rounds)
    report(arguments.recipes, arguments.repetitions, arguments.rule or list(RULES))
    return 0


def report(recipes: Sequence[str] = tuple(SIZES), repetitions: int = 5, rules: Sequence[str] = tuple(RULES)) -> Section:
    """Measure and print the speed of each model with each rule of drawing."""
    lines = [
        f"Tokens/s of {REQUESTS} requests one after another and at once: {PROMPT_TOKENS} tokens of prompt,"
        f" {NEW_TOKENS} new ones, random weights, {torch.get_num_threads()} threads. Each of {repetitions} repetitions"
        " gives a ratio.",
        "",
        "| model | tokens are drawn | one after another | at once | ratio |",
        "|---|---|---|---|---|",
    ]
    measures: list[Measure] = []
    for name in recipes:
        for row, measure in measure_speed(name, repetitions, rules):
            lines.append(row)
            measures.append(measure)
            print(row, flush=True)
    return Section("Batched decoding", "\n".join(lines), tuple(measures))


def measure_speed(name: str, repetitions: int, rules: Sequence[str]) -> Iterator[tuple[str, Measure]]:
    """Yield the row and the ratio of requests at once to one after another, for each rule of drawing."""
    recipe = load_recipe(Path("recipes") / f"{name}.toml")
    model = GPT(recipe.model)
    model.initialize(1)
    engine = Engine(LoadedModel(name, model.eval(), recipe, GPT2_TOKENIZER), half_weights=True)  # as `regpt serve`
    size = f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.0f}M"
    for rule in rules:
        sampling = RULES[rule]
        serve(engine, range(1), sampling)
        speeds = []
        for _ in range(repetitions):
            began_at = time.perf_counter()
            for number in range(REQUESTS):
                serve(engine, [number], sampling)
            middle = time.perf_counter()
            serve(engine, range(REQUESTS), sampling)
            speeds.append((middle - began_at, time.perf_counter() - middle))
        one, many = (REQUESTS * NEW_TOKENS / statistics.median(seconds) for seconds in zip(*speeds, strict=True))
        ratios = [alone / together for alone, together in speeds]
        measure = measure_of(f"decoding {REQUESTS} requests, {size}, {rule}: at once / in turn", ratios, GOAL)
        yield f"| {size} | {rule} | {one:.1f} | {many:.1f} | {measure.shown} |", measure
    engine.close()


def serve(engine: Engine, numbers: Sequence[int], sampling: Sampling) -> None:
    """Give requests to the engine at once, and wait until all have ended."""
    ended: queue.SimpleQueue[JobEvent] = queue.SimpleQueue()

    def emit(event: JobEvent) -> None:
        if isinstance(event, JobEnded):
            ended.put(event)

    for number in numbers:
        prompt = [1000 * number + place for place in range(PROMPT_TOKENS)]
        engine.submit(Job([prompt], 1, NEW_TOKENS, sampling, None, False, emit))
    assert all(ended.get() == JobEnded() for _ in numbers)


def measure_load(model: str, runs: Path, rounds: int) -> int:
    """Print the time of each round and the server's memory after it."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "runs"  # its output goes next to it
        root.symlink_to(runs.resolve())
        with served(root, model) as (program, port):
            run_rounds(program.pid, port, model, rounds)
    return 0


def run_rounds(pid: int, port: int, model: str, rounds: int) -> None:
    process, requests = psutil.Process(pid), 0
    for number in range(rounds):
        found = Round(port, model).run()
        assert len(set(found.texts)) == 1 and len(found.texts) == CLIENTS, found.texts
        requests += found.requests
        memory = process.memory_info().rss / 1e6
        print(f"round {number + 1:3}: {found.seconds:5.1f} s, {requests:5,} requests, {memory:7,.0f} MB", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
