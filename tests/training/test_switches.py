"""Runs with the switches of the model: an interrupted run is the undisturbed one, bit for bit."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from regpt.recipe.architecture import ModelRecipe
from regpt.tracking.events import Resumed
from regpt.tracking.journal import read_history
from regpt.tracking.layout import RunPaths
from regpt.training.start import resume, train
from tests.conftest import TINY, tiny_recipe
from tests.helpers.switches import covering_set

SECTIONS = ("model", "optimizer", "data")
LEARNING: list[dict[str, dict[str, Any]]] = [  # the models take turns with them
    {"optimizer": {"kind": "muon", "schedule": "trapezoid", "cooldown_steps": 4, "adam_cooldown_steps": 2}},
    {"optimizer": {"kind": "muon", "normuon": True, "cautious_weight_decay": True, "average_steps": 3}},
    {"optimizer": {"weight_decay_schedule": "lr", "vector_lr": 0.02}, "data": {"batch_ramp": "64 until 192"}},
    {"optimizer": {"kind": "muon", "muon_weight_decay": 0.1}, "model": {"experts": 4, "shared_experts": 1}},
    {"optimizer": {"average_steps": 2, "cautious_weight_decay": True}, "model": {"experts": 3}},
]
MODELS = covering_set(ModelRecipe(**{"mlp_hidden": 40, **TINY["model"]}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "number", [pytest.param(number, marks=[pytest.mark.nightly][: number > 1]) for number in range(len(MODELS))]
)
def test_resumed_run_equals_an_undisturbed_one(number: int, tmp_path: Path, texts: Path) -> None:
    """The checkpoint after three steps is all that the resume has: nothing of the model is outside its files."""
    learning = LEARNING[number % len(LEARNING)]
    sections = {"model": {**asdict(MODELS[number]), "init_std": 0.2}, "optimizer": {"max_lr": 0.1}}
    recipe = tiny_recipe(tmp_path, **{name: {**sections.get(name, {}), **learning.get(name, {})} for name in SECTIONS})
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(recipe, whole)
    shutil.copytree(whole, stopped)
    shutil.rmtree(RunPaths(stopped).checkpoint(6))
    resume(stopped, [])
    ours, theirs = (load_file(RunPaths(run).checkpoint(6) / "model.safetensors") for run in (whole, stopped))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    one, other = read_history(whole), read_history(stopped)
    assert len(other.details(Resumed)) == 1
    assert [step.loss for step in one.steps] == [step.loss for step in other.steps]
    assert [v.loss for v in one.validations] == [v.loss for v in other.validations]
