"""`regpt serve RUN` in a process: many clients, clients that leave, and the text of `regpt sample`."""

import io
from pathlib import Path

import openai
import psutil
import pytest

from regpt.base.errors import USAGE
from regpt.cli.main import main
from regpt.training.start import train
from tests.conftest import tiny_recipe
from tests.helpers.clients import CLIENTS, LEAVING, Round
from tests.helpers.conversations import chat_recipe
from tests.helpers.served_runs import served

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, real_text: str) -> Path:
    folder = tmp_path_factory.mktemp("served")
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text(real_text, encoding="utf-8")
    recipe = tiny_recipe(folder, evaluation={"validation_every": 0, "sample_count": 0})
    train(recipe, folder / "runs" / "a")
    return folder / "runs"


def test_endpoint_answers_many_clients_while_others_leave(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sample", "a", "--runs", str(runs), "--prompt", "def main(", "--tokens", "24", "--count", "1"]
    assert main([*words, "--temperature", "0"]) == 0
    expected = capsys.readouterr().out.removesuffix("\n").removeprefix("def main(")
    with served(runs, "a") as (program, port):
        memory = []
        for _ in range(3):
            found = Round(port, "a").run()
            assert found.texts == [expected] * CLIENTS and found.left == LEAVING
            assert found.statuses == {"large": (413, True), "noise": (400, True)}
            memory.append(psutil.Process(program.pid).memory_info().rss)
        assert memory[2] - memory[0] < 30e6
        with found.client() as client:
            assert [one.id for one in client.models.list()] == ["a"]
        assert "Traceback" not in program.output()


def test_checkpoint_that_is_chosen_answers_as_chat_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = chat_recipe(
        tmp_path,
        run={"max_steps": 4},
        optimizer={"average_steps": 2},
        checkpoint={"every": 2, "keep_last": 5},
        evaluation={"validation_every": 0, "sample_count": 0},
    )
    runs = tmp_path / "runs"
    train(recipe, runs / "a")
    choice = ["a", "--step", "2", "--averaged"]
    monkeypatch.setattr("sys.stdin", io.StringIO("What is 2 plus 3?\n"))
    assert main(["chat", *choice, "--runs", str(runs), "--temperature", "0", "--tokens", "12"]) == 0
    expected = capsys.readouterr().out.removesuffix("\n")
    with served(runs, *choice) as (_, port):
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        (model,) = client.models.list()
        assert (model.id, model.model_extra["step"], model.model_extra["averaged"]) == ("a-step-2-averaged", 2, True)
        question = {"role": "user", "content": "What is 2 plus 3?"}
        asked = {"model": model.id, "messages": [question], "max_tokens": 12, "temperature": 0}
        assert client.chat.completions.create(**asked).choices[0].message.content == expected
        chunks = client.chat.completions.create(**asked, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected


@pytest.mark.parametrize("words", [["--step", "2"], ["--averaged"]])
def test_step_without_a_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert main(["serve", *words, "--runs", str(tmp_path), "--port", "0"]) == USAGE
    assert words[0] in capsys.readouterr().err


def test_model_that_does_not_exist_is_named(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "nothing", "--runs", str(runs), "--port", "0"]) == USAGE
    assert "nothing" in capsys.readouterr().err
