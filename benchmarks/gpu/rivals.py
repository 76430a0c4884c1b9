"""Our step next to others with the same weights and tokens, in turn: a plain nanoGPT-like one, transformers' Llama."""

from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.bench import Bench, Training, free_memory, if_it_fits, median
from benchmarks.gpu.plain import PlainGPT
from benchmarks.gpu.results import AbsentError, Bound, Measured
from regpt.data.batches import Batch
from regpt.interop.huggingface import hugging_face_config, to_hugging_face
from regpt.machine.device import Device
from regpt.optimizer.making import make_optimizer
from regpt.recipe.recipe import Recipe

ROUNDS = 5  # of each side, in turn
MOST_DIFFERENCE = 0.01  # of the first losses
Forward = Callable[[Tensor, Tensor], Tensor]

SideBySide = Callable[[Bench, int], Generator[Measured, None, bool]]


class Rival:
    """Another model with the optimizer and clipping that its users write: torch's."""

    def __init__(self, device: Device, model: nn.Module, forward: Forward, recipe: Recipe) -> None:
        self.device, self.model, self.forward = device, model, forward
        self.optimizer = make_optimizer(model, recipe)
        self.clip = recipe.optimizer.grad_clip

    def step(self, batch: Batch) -> float:
        """Do an optimizer step; return the mean loss."""
        losses = []
        for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
            tokens, following = (torch.from_numpy(one).to(self.device.torch_device) for one in (inputs, targets))
            with self.device.autocast():
                loss = self.forward(tokens, following)
            (loss / len(batch.numbers)).backward()
            losses.append(loss.detach())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(torch.stack(losses).mean())


def plain_side_by_side(bench: Bench) -> Iterator[Measured]:
    """Compare with a plain model, compiled as a whole, whose loss materializes all logits."""
    yield from largest_that_fits(bench, "plain", plain)


def largest_that_fits(bench: Bench, name: str, side_by_side: SideBySide) -> Iterator[Measured]:
    """Compare with the micro-batch of the bench, or the largest half of it at which both sides fit into memory."""
    size = bench.sizes.micro_batch
    while size and not (yield from if_it_fits(f"{name}, micro-batch {size}", side_by_side(bench, size))):
        size //= 2


def plain(bench: Bench, size: int) -> Generator[Measured, None, bool]:
    recipe, device, ours = our_side(bench, size)
    model = PlainGPT(recipe.model).to(bench.place)
    model.load_state_dict(ours.parallel.model.state_dict())
    forward = torch.compile(model) if device.compiled else model
    least = bench.speed(Bound(least=1.0))
    yield from compare(bench, ours, Rival(device, model, forward, recipe), "plain", least)
    return True


def llama_side_by_side(bench: Bench) -> Iterator[Measured]:
    """Compare with transformers' LlamaForCausalLM, as it is and with each layer compiled."""
    for compiled in (False, True) if bench.compiles else (False,):
        name = "Llama, layers compiled" if compiled else "Llama"
        yield from largest_that_fits(bench, name, partial(llama, name=name, compiled=compiled))


def llama(bench: Bench, size: int, name: str, compiled: bool) -> Generator[Measured, None, bool]:
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise AbsentError("transformers is not installed") from error
    recipe, device, ours = our_side(bench, size)
    config: Any = LlamaConfig(**hugging_face_config(recipe.model), attn_implementation="sdpa")
    model = LlamaForCausalLM(config).to(bench.place)
    model.load_state_dict(to_hugging_face(ours.parallel.model), strict=False)
    for layer in model.model.layers if compiled else []:
        layer.compile()

    def forward(tokens: Tensor, targets: Tensor) -> Tensor:
        # shift_labels: use the targets unchanged, so that both sides score the same positions
        loss: Tensor = model(tokens, labels=targets, shift_labels=targets, use_cache=False).loss
        return loss

    yield from compare(bench, ours, Rival(device, model, forward, recipe), name, least=None)
    return True


def our_side(bench: Bench, size: int) -> tuple[Recipe, Device, Training]:
    """Return our side of a comparison with micro-batches of `size` windows."""
    free_memory()
    recipe = bench.recipe("gpt2-modern", f"data.micro_batch={size}")
    device = bench.device(recipe, compiled=True)
    return recipe, device, Training(bench, recipe, device)


def compare(bench: Bench, ours: Training, theirs: Rival, name: str, least: Bound | None) -> Iterator[Measured]:
    """Yield the difference of the first losses, the ratio of times, and the ratio of memories."""
    batches = bench.batches(ours.recipe)
    sides: dict[str, Callable[[Batch], object]] = {"ours": ours.step, name: theirs.step}
    losses = {"ours": ours.step(batches[0])[0], name: theirs.step(batches[0])}
    difference = abs(losses["ours"] - losses[name])
    yield Measured(f"{name}: difference of the first losses", difference, "nats", Bound(most=MOST_DIFFERENCE))
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    memory = dict.fromkeys(sides, 0.0)
    for turn in range(1 + min(ROUNDS, bench.sizes.steps)):
        for side, step in sides.items():
            taken, peak = watched(bench, partial(step, batches[turn % 4]))
            memory[side] = max(memory[side], peak)
            if turn:  # the first one warms up
                seconds[side].append(taken)
    tokens = ours.recipe.data.total_batch_tokens
    for side, values in seconds.items():
        yield Measured(
            f"{side if side != 'ours' else f'ours, next to {name}'}: speed", tokens / median(values), "tokens/s"
        )
    ratios = [other / mine for mine, other in zip(seconds["ours"], seconds[name], strict=True)]
    yield Measured(f"{name}: their seconds / ours", median(ratios), "", least)
    if bench.on_card:
        yield Measured(f"{name}: memory of a step besides the state of both, ours", memory["ours"] / 1e9, "GB")
        yield Measured(f"{name}: the same, theirs", memory[name] / 1e9, "GB")


def watched(bench: Bench, work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of a step, and the bytes that it allocates beyond those before it."""
    before = 0
    if bench.on_card:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    seconds = bench.seconds(work)
    peak = torch.cuda.max_memory_allocated() - before if bench.on_card else 0
    return seconds, float(peak)
