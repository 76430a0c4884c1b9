"""The results of `regpt evaluate`: rows for a table, and results.json in the directory of an evaluation."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from regpt.base.errors import UserError
from regpt.base.files import write_json
from regpt.interop.open_model import LoadedModel
from regpt.machine.device import Device
from regpt.tracking.layout import EVALUATIONS_DIR, RESULTS_FILE, RunPaths


@dataclass(frozen=True)
class Result:
    """A row of the table: the accuracy on a task by one metric, or a figure of the validation."""

    task: str
    metric: str
    name_elsewhere: str  # of this figure in other publications and tools
    value: float
    error: float | None  # standard error; None: unknown
    dataset: str  # description of the items or windows


def evaluation_dir(loaded: LoadedModel) -> Path:
    """Return where the results of a model belong: in its run, or in evaluations/ if it has none."""
    if loaded.run is not None and loaded.step is not None:
        return RunPaths(loaded.run).evaluation(loaded.step, loaded.averaged)
    return Path(EVALUATIONS_DIR) / loaded.name


def create_results(into: Path, loaded: LoadedModel, weights: str) -> None:
    """Create the directory `into` and its results.json, unless it has the results of this model already.

    Raises UserError where it has the results of another model. In a run's own directory these are replaced: they
    belong to steps that a resume has undone.
    """
    path = into / RESULTS_FILE
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["weights"] == weights and isinstance(known["tasks"], dict):
            return
        if loaded.run is None or into != evaluation_dir(loaded):
            raise UserError(
                f"{into}: contains the results of another model, {known['model']}",
                "choose another directory with --into",
            )
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path}: was not written by `regpt evaluate`", "choose another directory with --into"
        ) from None
    into.mkdir(parents=True, exist_ok=True)
    description = {"model": loaded.name, "weights": weights, "step": loaded.step, "tokens": loaded.tokens}
    write_json(path, {**description, "tokenizer": loaded.tokenizer_record, "tasks": {}})


def add_result(into: Path, device: Device, name: str, summary: dict[str, Any]) -> None:
    """Add the summary of one task to results.json."""
    known = json.loads((into / RESULTS_FILE).read_text(encoding="utf-8"))
    known["tasks"][name] = {
        **summary,
        "device": device.name,
        "precision": device.precision_name,
        "torch": torch.__version__,
    }
    write_json(into / RESULTS_FILE, known)
