"""Runs with the switches of the model: an interrupted run is the undisturbed one, bit for bit."""

import shutil
from dataclasses import asdict
from pathlib import Path

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

MODELS = covering_set(ModelRecipe(**{"mlp_hidden": 40, **TINY["model"]}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "model", [pytest.param(model, marks=[pytest.mark.nightly][: number > 0]) for number, model in enumerate(MODELS)]
)
def test_resumed_run_equals_an_undisturbed_one(model: ModelRecipe, tmp_path: Path, texts: Path) -> None:
    """The checkpoint after three steps is all that the resume has: nothing of the model is outside its files."""
    recipe = tiny_recipe(tmp_path, model={**asdict(model), "init_std": 0.2}, optimizer={"max_lr": 0.1})
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
