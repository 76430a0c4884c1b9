"""Checkpoints are complete or not used, and contain no code."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from regpt.base.errors import CheckpointError
from regpt.base.files import sha256_of_file
from regpt.checkpoint import store
from regpt.checkpoint.snapshot import snapshot
from regpt.checkpoint.tensor_files import SavedTensors, write_tensors
from regpt.model.gpt import GPT
from regpt.optimizer.making import make_optimizer
from regpt.recipe.recipe import Recipe


def save(
    run: Path, step: int, model: GPT, optimizer: torch.optim.Optimizer, state: dict[str, object]
) -> store.SavedCheckpoint:
    return store.write(run, snapshot(step, model, optimizer, state))


@pytest.fixture
def trained(tiny: Recipe) -> tuple[GPT, torch.optim.Optimizer]:
    model = GPT(tiny.model)
    model.initialize(1)
    optimizer = make_optimizer(model, tiny)
    x = torch.arange(66).reshape(2, 33)
    model(x[:, :-1], x[:, 1:]).backward()
    optimizer.step()
    return model, optimizer


def test_checkpoint_restores_weights_and_moments_bit_for_bit(tiny: Recipe, tmp_path: Path, trained) -> None:  # type: ignore[no-untyped-def]
    model, optimizer = trained
    saved = save(tmp_path, 1, model, optimizer, {"data": "x"})
    other = GPT(tiny.model)
    other_optimizer = make_optimizer(other, tiny)
    store.load_weights(saved.path, other)
    store.load_moments(saved.path, other, other_optimizer)
    assert store.load_state(saved.path) == {"step": 1, "data": "x"}
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
        assert all(
            torch.equal(optimizer.state[ours][key], other_optimizer.state[theirs][key])
            for key in ("exp_avg", "exp_avg_sq", "step")
        )


def test_checkpoint_is_safetensors_and_json_with_a_hash_per_file(tmp_path: Path, trained) -> None:  # type: ignore[no-untyped-def]
    path = save(tmp_path, 1, *trained, {}).path
    files = {file.name for file in path.iterdir()}
    assert files == {"model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}
    assert json.loads((path / "manifest.json").read_text())["files"].keys() == files - {"manifest.json"}
    names = set(SavedTensors([path / "model.safetensors"]).shapes)
    assert not any("_orig_mod" in name for name in names)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", [flip_a_byte, cut, Path.unlink])
def test_checkpoint_with_any_damaged_file_yields_to_an_older_one(
    tmp_path: Path,
    trained,
    file: str,
    damage: Callable[[Path], None],  # type: ignore[no-untyped-def]
) -> None:
    old, new = (save(tmp_path, step, *trained, {}).path for step in (1, 2))
    assert store.newest_valid(tmp_path) == new
    damage(new / file)
    assert store.newest_valid(tmp_path) == old
    damage(old / file)
    with pytest.raises(
        CheckpointError, match=file if file != "manifest.json" or damage is not flip_a_byte else "step_"
    ):
        store.newest_valid(tmp_path)


def test_checkpoint_that_is_only_partly_written_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / ".step_000009.partial").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        store.newest_valid(tmp_path)


def test_checkpoint_of_a_different_model_is_refused(tiny: Recipe, tmp_path: Path, trained) -> None:  # type: ignore[no-untyped-def]
    from dataclasses import replace

    path = save(tmp_path, 1, *trained, {}).path
    with pytest.raises(CheckpointError, match="holds another model"):
        store.load_weights(path, GPT(replace(tiny.model, n_layer=3)))


def test_tensor_files_are_equal_to_those_of_safetensors(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 5),
        "scalar": torch.tensor(2.5),
        "half": torch.randn(7).bfloat16(),
        "count": torch.tensor([1, 2, 3]),
        "empty": torch.empty(0, 4),
        "né": torch.randn(2),
    }
    about = write_tensors(tmp_path / "ours", tensors, {})
    assert about == {"bytes": (tmp_path / "ours").stat().st_size, "sha256": sha256_of_file(tmp_path / "ours")}
    save_file(tensors, tmp_path / "theirs")
    ours, theirs = load_file(tmp_path / "ours"), load_file(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    assert all(ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in theirs)
