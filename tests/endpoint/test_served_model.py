"""`regpt serve RUN` in a process: many clients, clients that leave, and the text of `regpt sample`."""

import json
import socket
import threading
from pathlib import Path

import openai
import pytest

from regpt.base.errors import USAGE
from regpt.cli.main import main
from regpt.training.start import train
from tests.conftest import tiny_recipe
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
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        for _ in range(2):  # leave in the middle of a long text
            body = json.dumps({"prompt": "a", "max_tokens": 4096, "stream": True}).encode()
            with socket.create_connection(("127.0.0.1", port)) as leaving:
                head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
                leaving.sendall(head.encode() + body)
                assert leaving.recv(100).startswith(b"HTTP/1.1 200")
        texts: list[str] = []

        def ask() -> None:
            answer = client.completions.create(model="a", prompt="def main(", max_tokens=24, temperature=0)
            texts.append(answer.choices[0].text)

        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert texts == [expected] * 20
        assert [one.id for one in client.models.list()] == ["a"]
        assert "Traceback" not in program.output()


def test_model_that_does_not_exist_is_named(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "nothing", "--runs", str(runs), "--port", "0"]) == USAGE
    assert "nothing" in capsys.readouterr().err
