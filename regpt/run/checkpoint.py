"""Checkpoints: one directory a step, of safetensors and JSON only, hashed, and there either whole or not at all.

A checkpoint is written from a copy in memory, so that training may go on meanwhile. `newest` uses nothing that it has
not held against its hashes, and says what it passed over.
"""

import hashlib
import json
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer

from regpt.base.errors import CheckpointError, NumericsError
from regpt.base.files import new_directory, sha256_of_file, write_json
from regpt.base.recipe import CheckpointRecipe
from regpt.model.gpt import GPT

FOLDER = "checkpoints"
FORMAT = "regpt-checkpoint"
FORMAT_VERSION = 2
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}  # safetensors' names
SPARE_BYTES = 1_000_000  # for headers, JSON and the file system


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint is written from: copies that training does not touch."""

    step: int
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    state: dict[str, Any]

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensors in (self.weights, self.moments) for tensor in tensors.values())


@dataclass(frozen=True)
class Saved:
    """A checkpoint on the disk."""

    path: Path
    step: int
    bytes: int
    seconds: float


def snapshot(
    step: int, model: GPT, optimizer: Optimizer, state: dict[str, Any], reuse: Snapshot | None = None
) -> Snapshot:
    """Copy everything after `step` completed steps, into the memory of an earlier snapshot where there is one."""
    return Snapshot(
        step,
        copied(weights_of(model), reuse.weights if reuse else {}),
        copied(moments_of(model, optimizer), reuse.moments if reuse else {}),
        state,
    )


def copied(tensors: dict[str, Tensor], memory: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: memory[name].copy_(tensor) if name in memory else tensor.to("cpu", copy=True).contiguous()
        for name, tensor in tensors.items()
    }


def weights_of(model: GPT) -> dict[str, Tensor]:
    """The parameters by name; a tied one once."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def moments_of(model: GPT, optimizer: Optimizer) -> dict[str, Tensor]:
    """AdamW's state by the parameters' names, as in 'blocks.0.mlp.down.weight/exp_avg'."""
    return {
        f"{name}/{key}": torch.as_tensor(value).detach()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def path_of(run: Path, step: int) -> Path:
    return run / FOLDER / f"step_{step:06d}"


def write(run: Path, taken: Snapshot) -> Saved:
    """Write a snapshot, hashed, flushed and then renamed. A whole checkpoint of that step is left as it is.

    Raises NumericsError where a number in it is none, CheckpointError where there is no room.
    """
    started_at = time.perf_counter()
    path = path_of(run, taken.step)
    if path.exists():
        if next(faults(path), None) is None:
            return Saved(path, taken.step, 0, 0.0)
        shutil.rmtree(path)  # damaged, and known to be
    refuse_non_finite(taken)
    path.parent.mkdir(exist_ok=True)
    check_space(path, taken.bytes)
    try:
        with new_directory(path) as beside:
            state = beside / "state.json"
            write_json(state, {"step": taken.step, **taken.state})
            files: dict[str, dict[str, Any]] = {
                "model.safetensors": write_tensors(beside / "model.safetensors", taken.weights),
                "optimizer.safetensors": write_tensors(beside / "optimizer.safetensors", taken.moments),
                "state.json": {"bytes": state.stat().st_size, "sha256": sha256_of_file(state)},
            }
            write_json(beside / "manifest.json", {"format": FORMAT, "version": FORMAT_VERSION, "files": files})
    except OSError as error:
        free = shutil.disk_usage(run).free
        raise CheckpointError(
            f"{path}: cannot be written ({error}); {free:,} bytes are free", "make room there; older ones are whole"
        ) from None
    size = sum(file["bytes"] for file in files.values())
    return Saved(path, taken.step, size, time.perf_counter() - started_at)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> dict[str, int | str]:
    """Write a safetensors file, hashed on the way: what the manifest says of it.

    The library's `save_file` copies everything into Python's bytes first and holds the interpreter while it does, which
    training would wait for. The form (https://github.com/huggingface/safetensors#format) is a length, a header in JSON,
    and the tensors one after another; the library reads it, and a test holds the two against each other.
    """
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        for piece in chain([memoryview(struct.pack("<Q", len(text)) + text)], map(bytes_of, tensors.values())):
            digest.update(piece)
            left = piece
            while left:
                left = left[file.write(left) :]
    return {"bytes": 8 + len(text) + end, "sha256": digest.hexdigest()}


def bytes_of(tensor: Tensor) -> memoryview:
    """A contiguous tensor's memory."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)


def refuse_non_finite(taken: Snapshot) -> None:
    for tensors in (taken.weights, taken.moments):
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise NumericsError(
                    f"step {taken.step}: {name} holds numbers that are none, so it is not saved",
                    "go on from the checkpoint before: regpt resume",
                )


def check_space(path: Path, size: int) -> None:
    needed, free = size + SPARE_BYTES, shutil.disk_usage(path.parent).free
    if needed > free:
        raise CheckpointError(
            f"{path}: needs {needed:,} bytes, {free:,} are free", "make room there; older checkpoints are whole"
        )


class Saver:
    """Writes checkpoints, one at a time, beside the training or at once, and removes those that need not be kept.

    `begin` copies; `finished` hands over what has been written, or raises what went wrong. Use as a context manager.
    """

    def __init__(self, run: Path, asked: CheckpointRecipe) -> None:
        self.run, self.asked = run, asked
        self.writing: Future[Saved] | None = None
        self.memory: Snapshot | None = None

    def __enter__(self) -> "Saver":
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        return self

    def __exit__(self, *raised: object) -> None:
        self.thread.shutdown(wait=True)

    def begin(
        self, step: int, model: GPT, optimizer: Optimizer, state: dict[str, Any], losses: dict[int, float]
    ) -> None:
        """Copy what is to be saved and begin to write it. What was begun before must have been taken by `finished`.

        `losses` are validation losses by step, for keep_best.
        """
        assert self.writing is None
        self.memory = snapshot(step, model, optimizer, state, self.memory)
        self.writing = self.thread.submit(self.write_and_prune, self.memory, dict(losses))

    def write_and_prune(self, taken: Snapshot, losses: dict[int, float]) -> Saved:
        saved = write(self.run, taken)
        prune(self.run, self.asked, losses)
        return saved

    def finished(self, wait: bool) -> Saved | None:
        """What was written since it was asked last; with `wait`, once it is. Raises what went wrong."""
        if self.writing is None or not (wait or self.writing.done()):
            return None
        writing, self.writing = self.writing, None
        return writing.result()


def prune(run: Path, asked: CheckpointRecipe, losses: dict[int, float]) -> list[Path]:
    """Remove checkpoints that the recipe does not keep; returns them. Nothing goes unless the newest is whole."""
    found = all_of(run)
    if asked.keep_last == 0 or len(found) <= asked.keep_last:
        return []
    kept = {step for step, _ in found[-asked.keep_last :]}
    if asked.keep_every:
        kept |= {step for step, _ in found if step % asked.keep_every == 0}
    if asked.keep_best:
        kept |= {min((step for step, _ in found if step in losses), key=lambda step: losses[step], default=-1)}
    removed = [path for step, path in found if step not in kept]
    if not removed or next(faults(found[-1][1]), None) is not None:
        return []
    for path in removed:
        gone = path.with_name(f".{path.name}.removed")
        path.rename(gone)
        shutil.rmtree(gone)
    return removed


def clean(run: Path) -> None:
    """Remove what a kill in the middle of writing or removing a checkpoint left behind. The caller holds the lock."""
    for path in (run / FOLDER).glob(".step_*"):
        shutil.rmtree(path)


def all_of(run: Path) -> list[tuple[int, Path]]:
    """(step, path) of every directory that may be a checkpoint, by step; the files' times say nothing."""
    names = ((path.name.removeprefix("step_"), path) for path in (run / FOLDER).glob("step_*"))
    return sorted((int(number), path) for number, path in names if number.isdecimal())


def newest(run: Path, passed_over: Callable[[str], None] = lambda problem: None, before: int | None = None) -> Path:
    """The newest checkpoint whose files are whole, of a step not above `before`; what it passes over is told.

    Raises CheckpointError where there is none.
    """
    problems = []
    for step, path in reversed(all_of(run)):
        if before is not None and step > before:
            continue
        problem = next(faults(path), None)
        if problem is None:
            return path
        passed_over(problem)
        problems.append(problem)
    if problems:
        raise CheckpointError(
            f"{run}: no checkpoint is whole ({problems[0]})", "start the run again under another run id"
        )
    fix = "wait for its first one, or start the run anew under another --name"
    raise CheckpointError(f"{run}: has no checkpoint yet", fix)


def faults(path: Path) -> Iterator[str]:
    """What is wrong with a checkpoint's files, held against its manifest."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        files = manifest["files"].items()
        if (manifest["format"], manifest["version"]) != (FORMAT, FORMAT_VERSION):
            yield (
                f"{path} is {manifest['format']} version {manifest['version']}; this regpt reads {FORMAT} version"
                f" {FORMAT_VERSION}"
            )
            return
        missing = {"model.safetensors", "optimizer.safetensors", "state.json"} - manifest["files"].keys()
        if missing:
            yield f"{path / 'manifest.json'} does not name {', '.join(sorted(missing))}"
            return
        for name, expected in files:
            file = path / name
            if not file.is_file() or file.stat().st_size != expected["bytes"]:
                yield f"{file} is missing or was cut short"
            elif sha256_of_file(file) != expected["sha256"]:
                yield f"{file} was changed after it was written"
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        yield f"{path / 'manifest.json'} is missing or no manifest"


def load_weights(path: Path, model: GPT) -> None:
    """Put a checkpoint's weights into a model of the same recipe."""
    saved = load_tensors(path / "model.safetensors")
    ours = dict(model.named_parameters())
    if saved.keys() != ours.keys() or any(saved[name].shape != ours[name].shape for name in ours):
        raise CheckpointError(
            f"{path}: holds another model than the recipe describes", "use the recipe it was trained with"
        )
    with torch.no_grad():
        for name, parameter in ours.items():
            parameter.copy_(saved[name])


def load_moments(path: Path, model: GPT, optimizer: Optimizer) -> None:
    """Put a checkpoint's optimizer state into the optimizer of a model of the same recipe."""
    saved = load_tensors(path / "optimizer.safetensors")
    for name, parameter in model.named_parameters():
        prefix = f"{name}/"
        moments = {key.removeprefix(prefix): value for key, value in saved.items() if key.startswith(prefix)}
        # a fused AdamW keeps its step counter on the parameter's device, in float32
        optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in moments.items()}


def load_state(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return state


def load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})", "use another checkpoint") from None
    return tensors
