"""Compare one training step with that of nanoGPT, and with one of transformers' Llama: time and peak memory.

Each side is a process of its own with the same weights and tokens, and takes one step whenever it is asked: forward
pass, backward pass, clipping and AdamW on 4,096 tokens. The sides work in turn, never at the same time. `ours` is what
a run does (`regpt/parallel/model.py`), with the settings that it has on a CPU.

    python -m benchmarks.step                                             every comparison
    python -m benchmarks.step --against nanogpt --size 7M --precision float32 bfloat16 --rounds 9
    python -m benchmarks.step --against llama --compile on                ours compiled
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.history import Goal, Measure, Section, measure_of
from benchmarks.nanogpt import NanoGPT, adamw
from regpt.distributed.rank_group import RankGroup
from regpt.interop.huggingface import hugging_face_config, to_hugging_face
from regpt.machine.device import open_device
from regpt.machine.env import use_huge_pages
from regpt.model.gpt import GPT
from regpt.parallel.making import make_parallel
from regpt.recipe.architecture import ModelRecipe
from regpt.recipe.settings import load_recipe

THREADS = 2
TOKENS = 4_096  # of a step
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Size:
    """A model, and how many rounds of it are measured."""

    model: ModelRecipe
    rounds: int

    @property
    def sequences(self) -> int:
        return TOKENS // self.model.block_size

    @property
    def classic(self) -> ModelRecipe:
        """Return the model with nanoGPT's architecture, which has no biases."""
        width = 4 * self.model.n_embd
        return replace(self.model, positions="learned", normalization="layernorm", activation="gelu", mlp_hidden=width)


SIZES = {
    "7M": Size(ModelRecipe(n_layer=4, n_head=4, n_embd=128, block_size=256, mlp_hidden=344), 9),
    "18M": Size(ModelRecipe(n_layer=6, n_head=4, n_embd=256, block_size=256, mlp_hidden=688), 7),
    "124M": Size(ModelRecipe(), 5),
}
# The least of their seconds / ours, by rival, size and precision; and the most of our peak memory / theirs.
SPEED_GOALS = {
    ("nanogpt", "7M", "float32"): Goal(3.0),
    ("nanogpt", "18M", "float32"): Goal(2.2),
    ("nanogpt", "124M", "float32"): Goal(1.3),
    ("nanogpt", "7M", "bfloat16"): Goal(3.5),
    ("nanogpt", "18M", "bfloat16"): Goal(2.5),
    ("nanogpt", "124M", "bfloat16"): Goal(1.5),
    ("llama", "7M", "float32"): Goal(1.4),
    ("llama", "124M", "float32"): Goal(1.15),
}
MEMORY_GOALS = {("llama", "124M", "float32"): Goal(0.7, at_most=True)}

Step = Callable[[], float]  # returns the loss


def our_step(model: ModelRecipe, size: Size, precision: str, compiled: str) -> Step:
    """Return a step as a run takes it."""
    recipe = load_recipe("demo-modern", [f"run.precision={precision}", f"run.compile={compiled}"])
    recipe = replace(recipe, model=model, run=replace(recipe.run, threads=THREADS))
    use_huge_pages()
    device = open_device(recipe.run)
    parallel = make_parallel(recipe, device, RankGroup())
    parallel.initialize(1)
    x, y = batch(size)

    def step() -> float:
        with device.autocast():
            loss: Tensor = parallel.train_module(x, y)
        loss.backward()
        parallel.update(parallel.squared_norm() ** 0.5, 0)
        return loss.item()

    return step


def rival_step(forward: Callable[[Tensor, Tensor], Tensor], model: nn.Module, size: Size, precision: str) -> Step:
    """Return a step as a plain training script takes it, with nanoGPT's optimizer."""
    optimizer = adamw(model)
    x, y = batch(size)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = forward(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def nanogpt_step(size: Size, precision: str) -> Step:
    model = NanoGPT(size.classic)
    model.load_state_dict(initialized(size.classic).state_dict())
    return rival_step(model, model, size, precision)


def llama_step(size: Size, precision: str) -> Step:
    """Return a step of LlamaForCausalLM as it comes, with its own loss over all logits."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config: Any = LlamaConfig(**hugging_face_config(size.model), attn_implementation="sdpa")
    model = LlamaForCausalLM(config)
    model.load_state_dict(to_hugging_face(initialized(size.model)), strict=False)

    def forward(tokens: Tensor, targets: Tensor) -> Tensor:
        # shift_labels: use the targets unchanged, so that both sides score the same positions
        loss: Tensor = model(tokens, labels=targets, shift_labels=targets, use_cache=False).loss
        return loss

    return rival_step(forward, model, size, precision)


def initialized(model: ModelRecipe) -> GPT:
    made = GPT(model)
    made.initialize(1)
    return made


def batch(size: Size) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 50_257, (size.sequences, size.model.block_size + 1), generator=generator)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


RIVALS = {"nanogpt": nanogpt_step, "llama": llama_step}


def work(arguments: argparse.Namespace) -> None:
    """Take a step for each line on standard input; print its seconds and loss, at the end the peak memory in bytes."""
    torch.set_num_threads(THREADS)
    size, precision = SIZES[arguments.size[0]], arguments.precision[0]
    if arguments.side == "ours":
        model = size.classic if arguments.against[0] == "nanogpt" else size.model
        step = our_step(model, size, precision, arguments.compile)
    else:
        step = RIVALS[arguments.side](size, precision)
    for _ in sys.stdin:
        started_at = time.perf_counter()
        loss = step()
        print(time.perf_counter() - started_at, loss, flush=True)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, flush=True)


class Side:
    """A process that takes a step whenever it is asked."""

    def __init__(self, command: Sequence[str], tree: Path | None = None) -> None:
        """`tree`: the folder whose modules the process imports (default: this one)."""
        environment = {**os.environ, "PYTHONPATH": str(tree)} if tree else None
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=tree, env=environment, stdin=pipe, stdout=pipe, text=True)

    def step(self) -> tuple[float, float]:
        """Return the seconds of one step, and its loss."""
        assert self.process.stdin and self.process.stdout
        print("step", file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline().split()
        if len(answer) != 2:
            raise SystemExit(f"a step failed in {self.process.args!r}: its message stands above")
        return float(answer[0]), float(answer[1])

    def end(self) -> int:
        """Return the peak memory of the process in bytes."""
        shown, _ = self.process.communicate()
        return int(shown)


@dataclass(frozen=True)
class Compared:
    """Seconds of each round and peak bytes of both sides."""

    ours: list[float]
    theirs: list[float]
    our_bytes: int
    their_bytes: int

    @property
    def ratios(self) -> list[float]:
        return [theirs / ours for ours, theirs in zip(self.ours, self.theirs, strict=True)]


def compare(rival: str, name: str, precision: str, rounds: int, compiled: str) -> Compared:
    """Measure both sides in turn, after two steps that warm up; refuse models whose first losses differ."""
    command = [sys.executable, "-m", "benchmarks.step", "--against", rival, "--size", name]
    command += ["--precision", precision, "--compile", compiled, "--side"]
    sides = Side([*command, "ours"]), Side([*command, rival])
    first = [side.step()[1] for side in sides]
    if abs(first[0] - first[1]) > 0.01:
        raise SystemExit(f"the models differ: first losses {first}")
    for side in sides:
        side.step()
    ours, theirs = zip(*[[side.step()[0] for side in sides] for _ in range(rounds)], strict=True)
    return Compared(list(ours), list(theirs), *[side.end() for side in sides])


def row(rival: str, name: str, precision: str, found: Compared) -> str:
    """Return a row of the table."""
    ratios, memory = found.ratios, found.our_bytes / found.their_bytes
    speed_goal = SPEED_GOALS.get((rival, name, precision))
    memory_goal = MEMORY_GOALS.get((rival, name, precision))
    cells = [
        rival,
        name,
        precision,
        f"{statistics.median(found.ours):.2f} s",
        f"{statistics.median(found.theirs):.2f} s",
        f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} rounds)",
        str(speed_goal or "—"),
        f"{found.our_bytes / 2**30:.2f} / {found.their_bytes / 2**30:.2f} GiB",
        f"**{memory:.2f}**",
        str(memory_goal or "—"),
    ]
    return f"| {' | '.join(cells)} |"


def report(
    rivals: Sequence[str] = tuple(RIVALS),
    sizes: Sequence[str] = tuple(SIZES),
    precisions: Sequence[str] = PRECISIONS,
    rounds: int = 0,
    compiled: str = "auto",
) -> Section:
    """Measure and print every comparison. `rounds` 0: those of each size."""
    measures: list[Measure] = []
    lines = [
        f"{THREADS} threads, {TOKENS:,} tokens: forward pass, backward pass, clipping, AdamW. nanoGPT's model is"
        " written again from its description (`benchmarks/nanogpt.py`); Llama is transformers' own."
        " Each side is a process, and they work in turn. `python -m benchmarks.step`",
        "",
        "| against | size | precision | ours | theirs | theirs / ours | goal | peak memory | ours / theirs | goal |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines[-2:]))
    for rival in rivals:
        for name in sizes:
            for precision in precisions:
                found = compare(rival, name, precision, rounds or SIZES[name].rounds, compiled)
                lines.append(row(rival, name, precision, found))
                print(lines[-1], flush=True)
                measures += measures_of(rival, name, precision, found)
    return Section(f"A training step against {' and '.join(rivals)}", "\n".join(lines), tuple(measures))


def measures_of(rival: str, name: str, precision: str, found: Compared) -> list[Measure]:
    """Return the ratios of time and of peak memory."""
    what, key = f"step, {name}, {precision}", (rival, name, precision)
    memory = [found.our_bytes / found.their_bytes]
    return [
        measure_of(f"{what}: {rival} / regpt", found.ratios, SPEED_GOALS.get(key)),
        measure_of(f"{what}: memory regpt / {rival}", memory, MEMORY_GOALS.get(key)),
    ]


def main() -> int:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.step", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--against", nargs="+", choices=RIVALS, default=list(RIVALS), help="whom to compare with")
    options.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES), help="sizes of the model")
    options.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS, help="default: both")
    options.add_argument("--rounds", type=int, default=0, help="steps of each side (default: 5 to 9, by size)")
    options.add_argument("--compile", choices=("auto", "on", "off"), default="auto", help="of our side (run.compile)")
    options.add_argument("--side", choices=("ours", *RIVALS), help=argparse.SUPPRESS)  # be one of the processes
    arguments = options.parse_args()
    if arguments.side:
        work(arguments)
    else:
        report(arguments.against, arguments.size, arguments.precision, arguments.rounds, arguments.compile)
    return 0


if __name__ == "__main__":
    sys.exit(main())
