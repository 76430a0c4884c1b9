"""Compare HellaSwag scoring with shared contexts against scoring one example at a time: time and memory.

    python -m benchmarks.hellaswag

nanoGPT's architecture, 124M parameters, random weights, float32, 2 threads, 40 items of both kinds in proportion. The
plain side does what public code does, with torch's own operations (`benchmarks/nanogpt.py`): the four sequences of an
item are four rows padded to the longest, and all logits are computed. A third side does the same with regpt's model,
which shows what the method alone saves. Each measurement is a separate process; the sides take turns.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.history import Goal, Section, measure_of
from benchmarks.nanogpt import NanoGPT
from benchmarks.step import SIZES
from regpt.data.tokenizer import encode
from regpt.evaluation.scoring import PackedTask, choice_losses, max_batch_tokens
from regpt.machine.allocator import keep_freed_memory
from regpt.machine.device import Device
from regpt.machine.env import use_huge_pages
from regpt.model.gpt import GPT
from regpt.recipe.settings import load_recipe
from regpt.tasks.catalog import TASKS
from regpt.tasks.items import Items, open_items

ROUNDS = 5
ITEMS = 40
GOALS = {"time": Goal(3.0), "memory": Goal(0.5, at_most=True)}
THREADS = 2
RECIPE = load_recipe("gpt2-modern")
CPU = Device(torch.device("cpu"), "CPU", torch.float32, compiled=False, peak_flops=1.0, peak_source="unused")


def plain(model: NanoGPT | GPT, items: Items) -> list[list[float]]:
    if isinstance(model, NanoGPT):
        return one_at_a_time(model.logits, items)
    return one_at_a_time(lambda tokens: model.logits(model.hidden(tokens)), items)


def one_at_a_time(logits_of: Callable[[Tensor], Tensor], items: Items) -> list[list[float]]:
    """Return the summed loss of every ending, one item at a time.  logits_of: (4, T) -> (4, T, V)"""
    found = []
    for item in items.items:
        rows, masks = [], []
        for context, ending in zip(item.contexts, item.choices, strict=True):
            before, after = encode(context).tolist(), encode(ending).tolist()
            rows.append(before + after)
            masks.append([0] * len(before) + [1] * len(after))
        longest = max(map(len, rows))
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = torch.tensor([row + [0] * (longest - len(row)) for row in masks])
        with torch.no_grad():
            logits = logits_of(tokens)
        shifted, targets = logits[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        losses = F.cross_entropy(shifted.view(-1, shifted.shape[-1]), targets.view(-1), reduction="none")
        found.append((losses.view(4, -1) * mask[:, 1:]).sum(dim=1).tolist())
    return found


def packed(model: GPT, items: Items) -> list[list[float]]:
    task = PackedTask(items, model.recipe.block_size, max_batch_tokens(RECIPE, CPU))
    return choice_losses(model, task, CPU).tolist()


PLAIN, SAME_MODEL, OURS = "plain, torch's operations", "plain, regpt's model", "regpt"
SIDES: dict[str, Callable[[Any, Items], list[list[float]]]] = {PLAIN: plain, SAME_MODEL: plain, OURS: packed}


def measure(side: str) -> dict[str, Any]:
    """Measure one side in this process: seconds, rise of the peak memory, and losses."""
    torch.set_num_threads(THREADS)
    if side == OURS:  # as every command does
        use_huge_pages()
        keep_freed_memory()
    model = model_of(side)
    items = open_items(TASKS["hellaswag"], count=ITEMS)
    SIDES[side](model, Items(items.task, items.items[:2], items.dataset_size, items.origin, True))  # warm
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak memory of this process
    before = memory("VmRSS")
    began_at = time.perf_counter()
    losses = SIDES[side](model, items)
    seconds = time.perf_counter() - began_at
    return {"seconds": seconds, "rise": memory("VmHWM") - before, "peak": memory("VmHWM"), "losses": losses}


def model_of(side: str) -> NanoGPT | GPT:
    """Return the model of one side; all have the same weights."""
    model = GPT(SIZES["124M"].classic)
    model.initialize(1337)
    model.eval()
    if side != PLAIN:
        return model
    theirs = NanoGPT(model.recipe)
    theirs.load_state_dict(model.state_dict(), assign=True)
    return theirs


def memory(name: str) -> int:
    """Return a memory figure from /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def operations() -> tuple[float, float]:
    """Return the floating-point operations of the matrix products of both methods."""
    items = open_items(TASKS["hellaswag"], count=ITEMS)
    groups = PackedTask(items, RECIPE.model.block_size, max_batch_tokens(RECIPE, CPU)).groups
    model = SIZES["124M"].classic
    per_position = 2 * model.block_matmul_parameters * model.n_layer
    head = 2 * model.vocab_size * model.n_embd
    rows = [
        [len(encode(text)) + len(encode(end)) for text, end in zip(item.contexts, item.choices, strict=True)]
        for item in items.items
    ]
    positions = sum(4 * max(lengths) for lengths in rows)
    ours = sum(group.tokens.size * per_position + len(group.targets) * head for group in groups)
    return positions * (per_position + head), ours


def report() -> Section:
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(ROUNDS):
        for side in SIDES:
            words = [sys.executable, "-m", "benchmarks.hellaswag", side]
            found[side].append(json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout))
    plain, same_model, ours = found[PLAIN], found[SAME_MODEL], found[OURS]
    faster, faster_by_method = (
        [t["seconds"] / o["seconds"] for t, o in zip(theirs, ours, strict=True)] for theirs in (plain, same_model)
    )
    smaller = [o["rise"] / t["rise"] for t, o in zip(plain, ours, strict=True)]
    # nanoGPT's own GELU is the exact one, ours GPT-2's approximation: losses are compared for the same model.
    apart = (torch.tensor(same_model[0]["losses"]) - torch.tensor(ours[0]["losses"])).abs().max().item()
    lines = ["| | time | items/s | memory without the model | whole process |", "|---|---|---|---|---|"]
    for side, rounds in found.items():
        seconds, rise, peak = (statistics.median(one[key] for one in rounds) for key in ("seconds", "rise", "peak"))
        lines.append(
            f"| {side} | {seconds:.1f} s | {ITEMS / seconds:.2f} | {rise / 1e6:.0f} MB | {peak / 1e6:.0f} MB |"
        )
    theirs, needed = operations()
    text = "\n".join(
        [
            f"nanoGPT's architecture, 124M parameters, random weights, float32, {THREADS} threads, {ITEMS} items"
            f" of both kinds, medians of {ROUNDS} rounds in turn.",
            "",
            *lines,
            "",
            f"**{statistics.median(faster):.2f} times as fast as plain code** ({min(faster):.2f} to {max(faster):.2f};"
            f" goal: {GOALS['time']}), with **{statistics.median(smaller):.2f} of the memory**, model excluded"
            f" ({min(smaller):.2f} to {max(smaller):.2f}; goal: {GOALS['memory']}). With the same model the method is"
            f" {statistics.median(faster_by_method):.2f} times as fast ({min(faster_by_method):.2f} to"
            f" {max(faster_by_method):.2f}): its matrix products are {theirs / needed:.2f} times fewer operations. The"
            f" largest difference between two losses of the same ending is {apart:.1e}.",
        ]
    )
    print(text, flush=True)
    measures = (
        measure_of("HellaSwag: time plain code / regpt", faster, GOALS["time"]),
        measure_of("HellaSwag: time one at a time / regpt", faster_by_method),
        measure_of("HellaSwag: memory regpt / plain code", smaller, GOALS["memory"]),
    )
    return Section("HellaSwag", text, measures)


if __name__ == "__main__":
    options = argparse.ArgumentParser(prog="python -m benchmarks.hellaswag", description=__doc__)
    options.add_argument("side", nargs="?", choices=SIDES, help="used by the benchmark itself")
    if side := options.parse_args().side:
        print(json.dumps(measure(side)))
    else:
        report()
