"""A model opens by the name of its run, a step of it, or the path of a checkpoint."""

from pathlib import Path

import pytest
import torch

import regpt
from regpt.base.errors import CHECKPOINT, DONE, USAGE
from regpt.cli.main import main
from regpt.interop.open_model import load_model, open_model
from regpt.training.start import train
from tests.conftest import tiny_recipe

COMMANDS = [["sample"], ["export"], ["evaluate", "--tasks", "validation"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, real_text: str) -> Path:
    """A folder with the run runs/a, which has checkpoints of steps 3 and 6."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text(real_text, encoding="utf-8")
    train(tiny_recipe(folder, evaluation={"validation_every": 0, "sample_count": 0}), folder / "runs" / "a")
    return folder


@pytest.fixture
def place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def test_model_opens_by_text_or_path_and_returns_logits(place: Path) -> None:
    newest = regpt.load_model("runs/a")
    third = regpt.load_model("a", step=3)
    assert (newest.step, third.step) == (6, 3)
    tokens = [newest.tokenizer.tokens("def main(").tolist()]
    logits = newest(tokens)
    assert logits.shape == (1, len(tokens[0]), newest.recipe.model.vocab_size)
    assert not torch.equal(logits, third(tokens))
    assert torch.equal(third(tokens), regpt.load_model(Path("runs/a/checkpoints/step_000003"))(torch.tensor(tokens)))
    assert torch.equal(logits, newest.model(torch.tensor(tokens)))
    assert torch.equal(logits, load_model("runs/a")(torch.tensor(tokens)))


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_commands_take_a_run_a_checkpoint_and_a_step(
    place: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    shown = []
    for number, model in enumerate([["a", "--step", "3"], ["runs/a/checkpoints/step_000003"], ["a"]]):
        target = [f"out{number}"] if words == ["export"] else []
        assert main([*words, *model, *target]) == DONE
        weights = place / f"out{number}" / "model.safetensors"
        shown.append(weights.read_bytes() if target else capsys.readouterr().out.partition("written")[0])
    assert shown[0] == shown[1] != shown[2]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_step_without_a_checkpoint_is_refused_with_the_others(
    place: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    target = ["out"] if words == ["export"] else []
    assert main([*words, "a", "--step", "4", *target]) == CHECKPOINT
    said = capsys.readouterr().err
    assert "step 4" in said and "3, 6" in said
    assert main([*words, "runs/a/checkpoints/step_000003", "--step", "6", *target]) == USAGE
    assert "--step 6" in capsys.readouterr().err
    with pytest.raises(regpt.UserError, match="--step 6"):
        open_model("runs/a/checkpoints/step_000003", place, step=6)
