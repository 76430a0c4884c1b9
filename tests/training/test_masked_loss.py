"""Training on conversations: the loss is the mean over the assistant's tokens of the whole global batch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from regpt.data.batches import Batch, BatchLoader
from regpt.data.loss_masks import IGNORED
from regpt.data.shards import TokenWindows, read_manifest
from regpt.evaluation.validation import validation
from regpt.machine.device import open_device
from regpt.model.gpt import GPT
from regpt.preparation.dataset import prepare
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import to_toml
from regpt.tracking.journal import History, read_history
from regpt.training.start import train
from tests.helpers.conversations import chat, chat_recipe, write_lines
from tests.helpers.parallel_runs import MODES, Workspace, losses

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with prepared conversations whose answers differ much in length."""
    folder = tmp_path_factory.mktemp("masked")
    rows = [{"messages": chat("word " * (n % 40 + 1), "answer " * (40 - n % 40))} for n in range(200)]
    write_lines(folder / "chats.jsonl", rows)
    prepare(recipe_in(folder))
    return folder


def recipe_in(folder: Path, micro_batch: int = 2, steps: int = 2) -> Recipe:
    return chat_recipe(
        folder,
        run={"max_steps": steps},
        data={"micro_batch": micro_batch, "total_batch_tokens": 512},
        model={"dropout": 0.0},
        evaluation={"sample_count": 0, "validation_every": 1},
    )


def first_batch(recipe: Recipe) -> Batch:
    manifest = read_manifest(recipe.data.directory)
    windows = TokenWindows(recipe.data.directory, manifest, "train", recipe.model.block_size)
    positions, seed = recipe.batch_positions, recipe.run.seed
    with BatchLoader(windows, positions=positions, micro_batch=2, seed=seed, shuffled=True) as batches:
        return batches.at(0)


def run_of(folder: Path, name: str, recipe: Recipe) -> History:
    train(recipe, folder / name)
    return read_history(folder / name)


@pytest.fixture(scope="module")
def in_twos(folder: Path) -> History:
    return run_of(folder, "twos", recipe_in(folder))


def test_loss_of_a_step_is_the_mean_over_all_tokens_that_count(folder: Path, in_twos: History) -> None:
    recipe = recipe_in(folder)
    batch = first_batch(recipe)
    counts = (batch.targets != IGNORED).sum(axis=(1, 2))
    assert counts.min() < 0.8 * counts.max()  # otherwise a mean of means would not differ
    model = GPT(recipe.model)
    model.initialize(recipe.run.initial_seed)
    inputs, targets = (torch.from_numpy(one.reshape(-1, 64)) for one in (batch.inputs, batch.targets))
    loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    loss.backward()
    norm = torch.stack([parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]).norm()
    step = in_twos.steps[0]
    assert step.loss == pytest.approx(loss.item(), abs=1e-5)
    assert step.gradient_norm == pytest.approx(norm.item(), rel=1e-4)


def test_micro_batches_do_not_change_the_loss(folder: Path, in_twos: History) -> None:
    """The classic fault: a mean of the micro-batches' means, which hold different numbers of tokens that count."""
    whole = run_of(folder, "whole", recipe_in(folder, micro_batch=8))
    assert losses(whole) == pytest.approx(losses(in_twos), abs=1e-6)
    norms = [[step.gradient_norm for step in history.steps] for history in (whole, in_twos)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_validation_counts_the_tokens_of_the_assistant_alone(folder: Path, in_twos: History) -> None:
    recipe = recipe_in(folder)
    windows = TokenWindows(recipe.data.directory, read_manifest(recipe.data.directory), "val", 64)
    model = GPT(recipe.model)
    model.initialize(recipe.run.initial_seed)
    numbers = range(min(len(windows), 8))
    tokens, counted = windows.rows(numbers).astype(np.int64), windows.counted(numbers)
    assert counted is not None
    logits = model(torch.from_numpy(tokens[:, :-1])).detach()
    by_token = F.cross_entropy(logits.transpose(1, 2), torch.from_numpy(tokens[:, 1:]), reduction="none").numpy()
    expected = float(by_token[counted].mean())
    found = validation(model, windows, recipe, open_device(recipe.run))
    assert found.loss == pytest.approx(expected, abs=1e-6) == in_twos.validations[0].loss
    assert found.by_window.mean() == pytest.approx(found.loss, abs=1e-9)
    assert found.standard_error > 0


def test_standard_error_of_unequal_windows_is_that_of_the_ratio(folder: Path) -> None:
    """Against a bootstrap over the windows, of which longer ones count more."""
    from regpt.evaluation.validation import summarize

    random = np.random.default_rng(1)
    counts = random.integers(5, 60, 400).astype(float)
    sums = counts * random.normal(3.0, 0.5, 400)
    found = summarize(sums, 0.0, counts)
    drawn = random.integers(0, 400, (2_000, 400))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    assert found.loss == pytest.approx(sums.sum() / counts.sum())
    assert found.standard_error == pytest.approx(means.std(), rel=0.1)


@pytest.mark.ranks
@pytest.mark.parametrize("mode", sorted(MODES))
def test_two_ranks_have_the_losses_of_one(folder: Path, in_twos: History, mode: str) -> None:
    recipe = recipe_in(folder)
    (folder / "tiny.toml").write_text(to_toml(replace(recipe, name="tiny")), encoding="utf-8")
    found = Workspace(folder).train(2, f"ranks-{mode}", MODES[mode])
    assert losses(found) == pytest.approx(losses(in_twos), abs=1e-6)
    assert [one.loss for one in found.validations] == pytest.approx([one.loss for one in in_twos.validations], abs=1e-6)
