"""Compare the optimizer step of Muon with AdamW's and with torch.optim.Muon's, and with a training step.

Each optimizer updates all parameters of the model; with either Muon, AdamW updates embedding and vectors. torch's Muon
works in bfloat16, one parameter at a time, and takes stacked matrices as one. A training step is forward and backward
pass on the given number of tokens; a few are timed and the time per token counts. Everything runs on one thread. The
processor time of the fastest round counts: on a shared machine the others measure the other programs.

    python -m benchmarks.muon --size 7M
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.optim import AdamW, Optimizer

from benchmarks.step import SIZES
from regpt.model.gpt import GPT
from regpt.optimizer.groups import Method, parameter_groups
from regpt.optimizer.making import make_optimizer
from regpt.optimizer.sizes import newton_schulz_share
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import load_recipe


@dataclass(frozen=True)
class Setup:
    """What is measured: a recipe, whose batch is a training step, and the rows of tokens that are timed of it."""

    recipe: str
    overrides: tuple[str, ...]
    rows: int
    rounds: int


SETUPS = {
    "7M": Setup("demo-modern", ("data.micro_batch=16", "data.total_batch_tokens=16384"), 4, 7),
    "124M": Setup("gpt2-modern", (), 1, 1),
}


def with_gradients(recipe: Recipe) -> GPT:
    model = GPT(recipe.model)
    model.initialize(1)
    for parameter in model.parameters():
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    return model


class TorchMuon:
    """torch.optim.Muon for the matrices inside blocks and AdamW for the rest."""

    def __init__(self, model: GPT, recipe: Recipe) -> None:
        groups = parameter_groups(model, recipe)
        hidden = [p for group in groups if group.method is Method.MUON for p in group.parameters.values()]
        others = [p for group in groups if group.method is Method.ADAMW for p in group.parameters.values()]
        self.parts: list[Optimizer] = [torch.optim.Muon(hidden, lr=0.02), AdamW(others, lr=1e-3, fused=True)]

    def step(self) -> None:
        for part in self.parts:
            part.step()


def passes(recipe: Recipe, rows: int) -> Callable[[], None]:
    model = GPT(recipe.model)
    model.initialize(1)
    tokens = torch.randint(0, 50_257, (rows, recipe.model.block_size + 1))

    def once() -> None:
        model(tokens[:, :-1], tokens[:, 1:]).backward()

    return once


def seconds_of(act: Callable[[], object]) -> float:
    started_at = time.process_time()
    act()
    return time.process_time() - started_at


def fastest_of(act: Callable[[], object], rounds: int) -> float:
    """Return the seconds of the fastest round, after one that is not timed."""
    act()
    return min(seconds_of(act) for _ in range(rounds))


def measure(name: str) -> list[str]:
    """Return a row per optimizer: seconds, relative to AdamW, and share of the passes of a training step."""
    setup = SETUPS[name]
    plain = load_recipe(setup.recipe, setup.overrides)
    muon, nor = (load_recipe(setup.recipe, [*setup.overrides, "optimizer.kind=muon", *more]) for more in EXTRAS)
    makers: dict[str, Callable[[], Callable[[], object]]] = {
        "AdamW": lambda: make_optimizer(with_gradients(plain), plain).step,
        "Muon": lambda: make_optimizer(with_gradients(muon), muon).step,
        "NorMuon": lambda: make_optimizer(with_gradients(nor), nor).step,
        "torch.optim.Muon": lambda: TorchMuon(with_gradients(muon), muon).step,
        "passes": lambda: passes(plain, setup.rows),
    }
    fastest = {side: fastest_of(make(), setup.rounds) for side, make in makers.items()}
    tokens = plain.data.total_batch_tokens
    step = fastest.pop("passes") * tokens / (setup.rows * plain.model.block_size)
    return [
        f"| {name} | {side} | {seconds:.3f} s | {seconds / fastest['AdamW']:.2f} | {100 * seconds / step:.2f} % |"
        f" {100 * newton_schulz_share(muon):.2f} % | {tokens:,} |"
        for side, seconds in fastest.items()
    ]


EXTRAS: tuple[tuple[str, ...], tuple[str, ...]] = ((), ("optimizer.normuon=true",))


def main() -> int:
    parser = argparse.ArgumentParser(description="Time Muon next to AdamW and torch.optim.Muon.")
    parser.add_argument("--size", choices=SIZES, nargs="+", default=list(SETUPS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | optimizer | step | / AdamW | of the passes | FLOPs of Muon | tokens per step |")
    print("|---|---|---|---|---|---|---|")
    for size in arguments.size:
        print("\n".join(measure(size)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
