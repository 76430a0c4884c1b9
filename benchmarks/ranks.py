"""Measure the share of a training step that is communication: two gloo ranks on one machine.

    python -m benchmarks.ranks

Two processes under torchrun, one thread each. Steps with and without gradient reduction take turns; the difference is
communication that does not overlap with compute. A step is that of a run (forward, backward, gradient norm, clipping,
AdamW) with micro-batches of 4 x 256 tokens, in float32.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from benchmarks.history import Section, measure_of
from regpt.distributed.rendezvous import open_rank_group
from regpt.machine.device import open_device
from regpt.machine.env import exit_process
from regpt.parallel.making import make_parallel
from regpt.parallel.model import Parallel
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import load_recipe

ROUNDS = 5
SIZES = {
    "7 M": ["demo-modern"],
    "30 M": ["demo-modern", "model.n_layer=6", "model.n_head=6", "model.n_embd=384", "model.mlp_hidden=1024"],
}
ALWAYS = ["run.device=cpu", "run.precision=float32", "run.threads=1", "model.block_size=256", "data.micro_batch=4"]
FORMS = {
    "ddp, 1 micro-batch per step": (1, []),
    "ddp, 4 micro-batches per step": (4, []),
    "fsdp, 1 micro-batch per step": (1, ["run.parallel=fsdp"]),
    "ddp with strict_sum, 1 micro-batch per step": (1, ["run.strict_sum=true"]),
}


def report() -> Section:
    lines = [
        "| parameters | mode | step | without reduction | share of communication | all-reduce of all gradients alone |",
        "|---|---|---|---|---|---|",
    ]
    measures = []
    for size, words in SIZES.items():
        for form, (micro_batches, settings) in FORMS.items():
            with_it, without, alone = measured([*words, *settings, *ALWAYS], micro_batches)
            shares = [1 - quiet / full for full, quiet in zip(with_it, without, strict=True)]
            measures.append(measure_of(f"two ranks, {size}, {form}: share of communication", shares))
            lines.append(
                f"| {size} | {form} | {statistics.median(with_it):.3f} s | {statistics.median(without):.3f} s"
                f" | **{statistics.median(shares):.1%}** ({min(shares):.1%} to {max(shares):.1%})"
                f" | {statistics.median(alone):.3f} s |"
            )
            print(lines[-1], flush=True)
    about = (
        f"Two gloo ranks on this machine, one thread each, micro-batches of 4 x 256 tokens, float32; {ROUNDS} rounds of"
        " a step with and a step without reduction. Without reduction, each rank trains the full model on its own."
    )
    return Section("Ranks", "\n".join([about, "", *lines]), tuple(measures))


def measured(words: list[str], micro_batches: int) -> tuple[list[float], list[float], list[float]]:
    """Return the seconds of steps with and without reduction, and of all-reducing all gradients alone."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "benchmarks.ranks", "--as-rank", str(micro_batches), *words]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    with_it, without, alone = json.loads(output.splitlines()[-1])
    return with_it, without, alone


def run_rank(words: list[str], micro_batches: int) -> None:
    recipe = load_recipe(words[0], words[1:])
    device = open_device(recipe.run)
    with open_rank_group(device, 600) as ranks:
        configured = make_parallel(recipe, device, ranks)
        plain = Parallel(recipe, device, ranks)
        for parallel in (configured, plain):
            parallel.initialize(1)
        tokens = torch.randint(0, 50_257, (4, recipe.model.block_size + 1))
        size = sum(parameter.numel() for parameter in plain.model.parameters())
        gradients = torch.zeros(size)
        seconds: tuple[list[float], list[float], list[float]] = ([], [], [])
        for turn in range(ROUNDS + 1):
            taken = (
                timed(lambda: step(configured, recipe, tokens, micro_batches)),
                timed(lambda: step(plain, recipe, tokens, micro_batches)),
                timed(lambda: dist.all_reduce(gradients)),
            )
            for place, value in zip(seconds, taken, strict=True):
                if turn:  # the first one warms up
                    place.append(value)
        if ranks.is_main:
            print(json.dumps(seconds), flush=True)


def step(parallel: Parallel, recipe: Recipe, tokens: torch.Tensor, micro_batches: int) -> None:
    share = 1.0 / parallel.micro_batches_in_mean(micro_batches)
    for number in range(micro_batches):
        with parallel.micro_batch(last=number == micro_batches - 1):
            (share * parallel.train_module(tokens[:, :-1], tokens[:, 1:])).backward()
        parallel.after_backward()
    parallel.after_last_backward()
    parallel.clip(parallel.squared_norm() ** 0.5)
    parallel.optimizer.step()
    parallel.optimizer.zero_grad()


def timed(what: Callable[[], object]) -> float:
    """Return the seconds from when both ranks are ready until both have finished."""
    dist.barrier()
    began_at = time.perf_counter()
    what()
    dist.barrier()
    return time.perf_counter() - began_at


if __name__ == "__main__":
    options = argparse.ArgumentParser(prog="python -m benchmarks.ranks", description=__doc__)
    options.add_argument("--as-rank", type=int, metavar="N", help="used by the benchmark itself")
    options.add_argument("words", nargs="*", help="used by the benchmark itself")
    arguments = options.parse_args()
    if arguments.as_rank:
        run_rank(arguments.words, arguments.as_rank)
        exit_process(0)  # as a rank of a run does
    else:
        print(report().text)
