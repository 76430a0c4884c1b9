"""Checkpoints: one directory a step, of safetensors and JSON only, hashed, and there either whole or not at all."""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from regpt.base.errors import CheckpointError
from regpt.base.files import new_directory, sha256_of_file, write_json
from regpt.model.gpt import GPT

FOLDER = "checkpoints"
FORMAT = "regpt-checkpoint"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Saved:
    """A checkpoint on the disk."""

    path: Path
    bytes: int
    seconds: float


def save(run: Path, step: int, model: GPT, optimizer: Optimizer, state: dict[str, Any]) -> Saved:
    """Write a checkpoint of `step` completed steps. `state` is JSON: what a resume must find unchanged."""
    started_at = time.perf_counter()
    path = run / FOLDER / f"step_{step:06d}"
    if path.exists():
        if next(faults(path), None) is None:
            return Saved(path, 0, 0.0)
        shutil.rmtree(path)  # damaged, and known to be
    with new_directory(path) as beside:
        save_file(weights_of(model), beside / "model.safetensors")
        save_file(moments_of(model, optimizer), beside / "optimizer.safetensors")
        write_json(beside / "state.json", {"step": step, **state})
        files: dict[str, dict[str, Any]] = {
            file.name: {"bytes": file.stat().st_size, "sha256": sha256_of_file(file)}
            for file in sorted(beside.iterdir())
        }
        write_json(beside / "manifest.json", {"format": FORMAT, "version": FORMAT_VERSION, "files": files})
    return Saved(path, sum(file["bytes"] for file in files.values()), time.perf_counter() - started_at)


def weights_of(model: GPT) -> dict[str, Tensor]:
    """The parameters by name, on the CPU; a tied one once."""
    return {name: parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()}


def moments_of(model: GPT, optimizer: Optimizer) -> dict[str, Tensor]:
    """AdamW's state by the parameters' names, as in 'blocks.0.mlp.down.weight/exp_avg'."""
    return {
        f"{name}/{key}": torch.as_tensor(value).detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def newest(run: Path) -> Path:
    """The newest checkpoint whose files are whole. Raises CheckpointError where there is none."""
    found = sorted((run / FOLDER).glob("step_*"), reverse=True)
    problems = []
    for path in found:
        problem = next(faults(path), None)
        if problem is None:
            return path
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
            yield f"{path} is {manifest['format']} version {manifest['version']}"
            return
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        yield f"{path / 'manifest.json'} is missing or no manifest"
        return
    for name, expected in files:
        file = path / name
        if not file.is_file() or file.stat().st_size != expected["bytes"]:
            yield f"{file} is missing or was cut short"
        elif sha256_of_file(file) != expected["sha256"]:
            yield f"{file} was changed after it was written"


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
