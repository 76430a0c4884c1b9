"""Compare one training step of regpt with one of transformers' Llama of equal size: time and memory.

Both run forward, backward, clipping and fused AdamW in float32 with the same weights and tokens. The baseline is
LlamaForCausalLM without changes, with its own loss over all logits and scaled_dot_product_attention. Times are measured
in one process, in turn. Peak memory is measured in a separate process for each side, over three steps.

    python -m benchmarks.step --size 7M            times
    python -m benchmarks.step --size 124M --memory ours
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from regpt.interop.huggingface import hugging_face_config, to_hugging_face
from regpt.model.gpt import GPT
from regpt.optimizer.making import make_optimizer
from regpt.recipe.architecture import ModelRecipe
from regpt.recipe.settings import load_recipe


@dataclass(frozen=True)
class Size:
    """A comparison: the model, the batch and the goals."""

    model: ModelRecipe
    sequences: int
    rounds: int
    speed_goal: float  # minimum of their seconds / ours
    memory_goal: float | None  # maximum of our peak memory / theirs


SIZES = {
    "7M": Size(ModelRecipe(n_layer=4, n_head=4, n_embd=128, block_size=256, mlp_hidden=344), 16, 9, 1.4, None),
    "124M": Size(ModelRecipe(), 4, 3, 1.15, 0.7),
}
THREADS = 2


def our_step(size: Size) -> Callable[[], float]:
    model = GPT(size.model)
    model.initialize(1)
    optimizer = make_optimizer(model, load_recipe("demo-modern"))
    x, y = batch(size)

    def step() -> float:
        loss = model(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def their_step(size: Size) -> Callable[[], float]:
    from transformers import LlamaConfig, LlamaForCausalLM

    ours = GPT(size.model)
    ours.initialize(1)
    config: Any = LlamaConfig(**hugging_face_config(size.model), attn_implementation="sdpa")
    model = LlamaForCausalLM(config)
    model.load_state_dict(to_hugging_face(ours), strict=False)
    del ours
    optimizer = make_optimizer(model, load_recipe("demo-modern"))
    x, y = batch(size)

    def step() -> float:
        # shift_labels: use the targets unchanged, so that both sides score the same positions
        loss = model(x, labels=y, shift_labels=y, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.item())

    return step


SIDES = {"ours": our_step, "theirs": their_step}


def batch(size: Size) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 50_257, (size.sequences, size.model.block_size + 1), generator=generator)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def seconds_of(step: Callable[[], float]) -> float:
    started_at = time.perf_counter()
    step()
    return time.perf_counter() - started_at


def compare_times(size: Size) -> dict[str, list[float]]:
    """Return the seconds of each round's step, in turn, after a warm-up step."""
    steps = {name: make(size) for name, make in SIDES.items()}
    losses = {name: step() for name, step in steps.items()}
    assert abs(losses["ours"] - losses["theirs"]) < 1e-3, f"the models differ: {losses}"
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(size.rounds):
        for name, step in steps.items():
            seconds[name].append(seconds_of(step))
    return seconds


def peak_memory(name: str, side: str) -> int:
    """Return the peak memory of a new process for three steps, in bytes."""
    command = [sys.executable, "-m", "benchmarks.step", "--size", name, "--memory", side]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(shown.split()[-1])


def report() -> list[str]:
    lines = [
        "## A training step against transformers' Llama of equal size",
        "",
        f"float32, {THREADS} threads, 4,096 tokens per step: forward, backward, clipping, fused AdamW."
        " Peak memory is that of a separate process for three steps.",
        "",
        "| size | ours | theirs | theirs / ours | goal | our peak memory | their peak memory | ours / theirs | goal |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, size in SIZES.items():
        seconds = compare_in_new_process(name)
        ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds["theirs"], strict=True)]
        memory = {side: peak_memory(name, side) for side in SIDES}
        lines.append(
            f"| {name} ({size.model.parameters:,}) | {statistics.median(seconds['ours']):.2f} s"
            f" | {statistics.median(seconds['theirs']):.2f} s"
            f" | **{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f}, {size.rounds} rounds)"
            f" | ≥ {size.speed_goal} | {memory['ours'] / 2**30:.2f} GiB | {memory['theirs'] / 2**30:.2f} GiB"
            f" | **{memory['ours'] / memory['theirs']:.2f}** | {f'≤ {size.memory_goal}' if size.memory_goal else '—'} |"
        )
        print(lines[-1], flush=True)
    return ["\n".join(lines)]


def compare_in_new_process(name: str) -> dict[str, list[float]]:
    shown = subprocess.run(
        [sys.executable, "-m", "benchmarks.step", "--size", name], check=True, capture_output=True, text=True
    ).stdout
    rows = [line.split() for line in shown.splitlines() if line.startswith(("ours ", "theirs "))]
    return {side: [float(value) for value in values] for side, *values in rows}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--size", choices=SIZES, required=True, help="size of the model")
    options.add_argument(
        "--memory", choices=SIDES, help="run three steps of one side and print its peak memory in bytes"
    )
    arguments = options.parse_args()
    torch.set_num_threads(THREADS)
    size = SIZES[arguments.size]
    if arguments.memory:
        step = SIDES[arguments.memory](size)
        for _ in range(3):
            step()
        unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    else:
        for side, seconds in compare_times(size).items():
            print(side, *(f"{value:.4f}" for value in seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
