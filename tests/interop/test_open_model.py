"""A model opens by the name of its run, a step of it, or the path of a checkpoint."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import regpt
from regpt.base.errors import CHECKPOINT, DONE, USAGE, DataError
from regpt.cli.main import main
from regpt.interop.initial import with_source_model
from regpt.interop.open_model import digest_of_weights, load_model, open_model
from regpt.training.start import train
from tests.conftest import tiny_recipe
from tests.helpers.hub_server import COMMIT, HubServer, served

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


@pytest.fixture
def hub(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub with the exported run as the model someone/tiny, and an empty cache."""
    from huggingface_hub import constants

    if not (place / "exported").is_dir():
        assert main(["export", "a", "exported"]) == DONE
    files = {path.name: path.read_bytes() for path in (place / "exported").iterdir()}
    with served(
        "someone/tiny", {**files, "onnx/model.safetensors": b"other", "pytorch_model.bin": b""}, "models"
    ) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub


def test_model_of_the_hub_is_downloaded_once_at_a_recorded_commit(hub: HubServer, place: Path) -> None:
    opened = open_model("hub:someone/tiny", place)
    assert (opened.name, opened.exact_name) == ("tiny", f"hub:someone/tiny@{COMMIT}")
    assert opened.has_gpt2_tokens
    x = torch.arange(20)[None]
    assert torch.equal(opened(x), regpt.load_model("a")(x)[..., :50_257])
    asked = [path for path, _ in hub.requests]
    assert "model.safetensors" in asked and not {"onnx/model.safetensors", "pytorch_model.bin"} & {*asked}
    open_model(opened.exact_name, place)
    hub.shutdown()
    hub.server_close()
    assert torch.equal(open_model("hub:someone/tiny", place)(x), opened(x))  # from the cache
    assert len(hub.requests) == len(asked)


def test_recipe_takes_the_shape_of_a_model_of_the_hub_without_its_weights(hub: HubServer, place: Path) -> None:
    asked = tiny_recipe(place, run={"init_from": "hub:someone/tiny"})
    found = with_source_model(asked, place)
    assert found.run.init_from == f"hub:someone/tiny@{COMMIT}" and found.model.vocab_size == 50_257
    assert "model.safetensors" not in [path for path, _ in hub.requests]
    assert digest_of_weights(open_model(found.run.init_from, place).model)
    assert "model.safetensors" in [path for path, _ in hub.requests]


def test_unknown_models_of_the_hub_are_refused_with_the_remedy(hub: HubServer, place: Path) -> None:
    with pytest.raises(DataError, match=r"someone/other at revision main: the hub has no such model.*hf auth login"):
        open_model("hub:someone/other", place)
    with pytest.raises(DataError, match="someone/tiny at revision v2: the hub has no such revision"):
        open_model("hub:someone/tiny@v2", place)
    with pytest.raises(regpt.UserError, match=r"'hub:gpt2' is not a model on the hub.*hub:openai-community/gpt2"):
        open_model("hub:gpt2", place)
    with pytest.raises(regpt.UserError, match=r"'someone/tiny' is not a run.*hub:OWNER/NAME"):
        open_model("someone/tiny", place)


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_commands_take_models_of_the_hub_and_directories(
    hub: HubServer, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    shown = []
    for number, model in enumerate(["hub:someone/tiny", "exported"]):
        more = {"export": [str(tmp_path / f"out{number}")], "evaluate": ["data.path=data"]}.get(words[0], [])
        into = ["--into", str(tmp_path / f"results{number}")] if words[0] == "evaluate" else []
        assert main([*words, model, *more, *into]) == DONE
        weights = tmp_path / f"out{number}" / "model.safetensors"
        shown.append(weights.read_bytes() if words == ["export"] else capsys.readouterr().out.partition("written")[0])
    assert shown[0] == shown[1]
