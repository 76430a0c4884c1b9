"""Checkpoints: one directory per step, safetensors and JSON only, hashed, and renamed into place when complete.

A checkpoint is written from a snapshot in memory, so training continues meanwhile. With a sharded model each rank
writes its rows into files of its own. Readers ask for rows, so a checkpoint loads on any number of ranks.
`newest_valid` compares every file with its hash before it returns a checkpoint, and reports those it rejects.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from regpt.base.errors import CheckpointError, NumericsError, is_quota_error, writing_advice
from regpt.base.files import flush_file, new_directory, sha256_of_file, staging_dir, write_json
from regpt.checkpoint.snapshot import Snapshot, named_weights
from regpt.checkpoint.tensor_files import SavedTensors, write_tensors
from regpt.distributed.dtensor import local_rows, shard_like, to_local
from regpt.model.gpt import GPT
from regpt.optimizer.base import Optimizer
from regpt.tracking.layout import STEP_PREFIX, RunPaths, step_directories

FORMAT = "regpt-checkpoint"
FORMAT_VERSION = 2
Files = dict[str, dict[str, int | str]]  # by name: bytes and sha256
HASH_THREADS = 8
SPARE_BYTES = 1_000_000  # for headers, JSON and the file system


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint on the disk."""

    path: Path
    step: int
    bytes: int
    seconds: float


def write(
    run: Path,
    taken: Snapshot,
    parts: int = 1,
    begun: Callable[[], None] = lambda: None,
    others: Callable[[], Files] = dict,
) -> SavedCheckpoint:
    """Write a snapshot with hashes, flush it, and rename it into place. An intact checkpoint of that step is kept.

    With several `parts`, `begun` is called once the directory exists, and `others` waits for the files of the other
    ranks. Raises NumericsError if a value is NaN or infinite, CheckpointError if the disk is too full.
    """
    started_at = time.perf_counter()
    path = RunPaths(run).checkpoint(taken.step)
    if path.exists():
        if next(find_faults(path), None) is None:
            return SavedCheckpoint(path, taken.step, 0, 0.0)
        shutil.rmtree(path)  # damaged
    check_finite(taken)
    path.parent.mkdir(exist_ok=True)
    check_space(path, taken.bytes * parts)
    try:
        with new_directory(path) as folder:
            begun()
            state = folder / "state.json"
            write_json(state, {"step": taken.step, **taken.state})
            files = write_tensor_files(folder, taken, 0, parts) | others()
            files["state.json"] = {"bytes": state.stat().st_size, "sha256": sha256_of_file(state)}
            about = {"format": FORMAT, "version": FORMAT_VERSION, "parts": parts, "files": files}
            write_json(folder / "manifest.json", about)
    except OSError as error:
        raise write_error(path, error) from None
    size = sum(int(file["bytes"]) for file in files.values())
    return SavedCheckpoint(path, taken.step, size, time.perf_counter() - started_at)


def write_part(run: Path, taken: Snapshot, part: int, parts: int) -> Files:
    """Write this rank's part into the directory that `write` made on rank 0, and return sizes and hashes."""
    path = RunPaths(run).checkpoint(taken.step)
    check_finite(taken)
    folder = staging_dir(path)
    try:
        files = write_tensor_files(folder, taken, part, parts)
        for name in files:
            flush_file(folder / name)
    except OSError as error:
        raise write_error(path, error) from None
    return files


def write_tensor_files(folder: Path, taken: Snapshot, part: int, parts: int) -> Files:
    model, optimizer = tensor_files(parts)[2 * part : 2 * part + 2]
    return {
        model: write_tensors(folder / model, taken.weights, taken.rows),
        optimizer: write_tensors(folder / optimizer, taken.moments, taken.rows),
    }


def tensor_files(parts: int) -> list[str]:
    """Return the names of the tensor files: weights and optimizer moments of each part."""
    numbers = [f"-{part:05d}-of-{parts:05d}" if parts > 1 else "" for part in range(1, parts + 1)]
    return [f"{kind}{number}.safetensors" for number in numbers for kind in ("model", "optimizer")]


def write_error(path: Path, error: OSError) -> CheckpointError:
    there = next(parent for parent in path.parents if parent.exists())
    free = "" if is_quota_error(error) else f"; {shutil.disk_usage(there).free:,} bytes are free"
    return CheckpointError(
        f"{path}: cannot be written ({error}){free}", f"{writing_advice(error)}; older checkpoints are intact"
    )


def check_finite(taken: Snapshot) -> None:
    for tensors in (taken.weights, taken.moments):
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise NumericsError(
                    f"step {taken.step}: {name} contains NaN or Inf; checkpoint not written",
                    "continue from the previous checkpoint: regpt resume",
                )


def check_space(path: Path, size: int) -> None:
    needed, free = size + SPARE_BYTES, shutil.disk_usage(path.parent).free
    if needed > free:
        raise CheckpointError(
            f"{path}: needs {needed:,} bytes, {free:,} are free", "free disk space; older checkpoints are intact"
        )


def remove_partial(run: Path) -> None:
    """Remove partial checkpoints that a kill left behind. The caller must hold the run's lock."""
    for path in RunPaths(run).checkpoints.glob(f".{STEP_PREFIX}*"):
        shutil.rmtree(path)


def list_checkpoints(run: Path) -> list[tuple[int, Path]]:
    """List (step, path) of all checkpoint directories, in order of steps; file times are ignored."""
    return step_directories(RunPaths(run).checkpoints)


def remove_after(run: Path, step: int) -> None:
    """Remove the checkpoints of steps after `step`, which an abandoned attempt left."""
    for later, path in list_checkpoints(run):
        if later > step:
            remove(path)


def remove(path: Path) -> None:
    """Remove a checkpoint. It is renamed first, so that a kill leaves no partial checkpoint under its name."""
    gone = path.with_name(f".{path.name}.removed")
    path.rename(gone)
    shutil.rmtree(gone)


def newest_valid(
    run: Path, passed_over: Callable[[str], None] = lambda problem: None, before: int | None = None
) -> Path:
    """Return the newest checkpoint whose files are intact, of step `before` or earlier.

    `passed_over` is called with the problem of each newer one. Raises CheckpointError if no checkpoint is intact.
    """
    problems = []
    for step, path in reversed(list_checkpoints(run)):
        if before is not None and step > before:
            continue
        problem = next(find_faults(path), None)
        if problem is None:
            return path
        passed_over(problem)
        problems.append(problem)
    if problems:
        raise CheckpointError(
            f"{run}: no checkpoint is intact ({problems[0]})", "start the run again under another --name"
        )
    fix = "wait for the first one, or start a new run under another --name"
    raise CheckpointError(f"{run}: has no checkpoint yet", fix)


def find_faults(path: Path) -> Iterator[str]:
    """Yield the problems of a checkpoint's files, which are compared with its manifest."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        files = manifest["files"].items()
        if (manifest["format"], manifest["version"]) != (FORMAT, FORMAT_VERSION):
            yield (
                f"{path} is {manifest['format']} version {manifest['version']}; this regpt reads {FORMAT} version"
                f" {FORMAT_VERSION}"
            )
            return
        missing = {*tensor_files(manifest.get("parts", 1)), "state.json"} - manifest["files"].keys()
        if missing:
            yield f"{path / 'manifest.json'} does not name {', '.join(sorted(missing))}"
            return
        with ThreadPoolExecutor(HASH_THREADS) as threads:
            problems = threads.map(lambda named: file_fault(path / named[0], named[1]), files)
        yield from filter(None, problems)
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        yield f"{path / 'manifest.json'} is missing or not a manifest"


def file_fault(file: Path, expected: dict[str, Any]) -> str:
    if not file.is_file() or file.stat().st_size != expected["bytes"]:
        return f"{file} is missing or was cut short"
    try:
        return f"{file} was changed after it was written" if sha256_of_file(file) != expected["sha256"] else ""
    except OSError as error:
        return f"{file} cannot be read ({error.strerror})"


def load_weights(path: Path, model: GPT) -> None:
    """Load a checkpoint's weights into a model of the same recipe; if it is sharded, this rank's rows."""
    saved = saved_tensors(path, "model")
    ours = named_weights(model)
    if saved.shapes.keys() != ours.keys() or any(saved.shapes[name] != ours[name].shape for name in ours):
        raise CheckpointError(
            f"{path}: holds another model than the recipe describes", "use the recipe it was trained with"
        )
    with torch.no_grad():
        for name, tensor in ours.items():
            to_local(tensor).copy_(saved.rows(name, *local_rows(tensor)))


def load_moments(path: Path, model: GPT, optimizer: Optimizer) -> None:
    """Load a checkpoint's optimizer state; the optimizer is sharded like its model."""
    saved = saved_tensors(path, "optimizer")
    for name, parameter in model.named_parameters():
        prefix = f"{name}/"
        optimizer.state[parameter] = {}
        for key in (key for key in saved.shapes if key.startswith(prefix)):
            rows = saved.rows(key, *local_rows(parameter))
            # a fused AdamW keeps its step counter on the parameter's device, in float32
            here = rows.to(to_local(parameter).device)
            has_rows = saved.shapes[key][:1] == parameter.shape[:1]
            optimizer.state[parameter][key.removeprefix(prefix)] = shard_like(parameter, here) if has_rows else here


def saved_tensors(path: Path, kind: str) -> SavedTensors:
    """Return the tensor files of a checkpoint's model, or of its optimizer."""
    parts = json.loads((path / "manifest.json").read_text(encoding="utf-8")).get("parts", 1)
    return SavedTensors([path / name for name in tensor_files(parts) if name.startswith(kind)])


def load_state(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return state
