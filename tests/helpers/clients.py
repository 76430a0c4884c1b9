"""Many clients of a served model at once, some of which leave or send what cannot be served."""

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import openai

PROMPT = "def main("
NEW_TOKENS = 24
CLIENTS = 20
LEAVING = 2
LARGE = b'{"prompt": "' + 10_000_000 * b"x" + b'"}'


class Round:
    """20 clients that want a text, half of them as a stream; 2 that leave, one that sends 10 MB, one that sends noise.

    All begin at the same time.
    """

    def __init__(self, port: int, model: str) -> None:
        self.base, self.model = f"http://127.0.0.1:{port}/v1", model
        self.texts: list[str] = []  # greedy, of the clients that stay
        self.statuses: dict[str, Any] = {}  # of large and noise: status and type of the error
        self.left = 0
        self.seconds = 0.0
        self.requests = CLIENTS + LEAVING + 2

    def run(self) -> "Round":
        """Run all clients; return when all are done."""
        began_at = time.perf_counter()
        parts: list[Callable[[], None]] = [self.ask, self.ask_for_stream] * (CLIENTS // 2) + [self.leave] * LEAVING
        parts += [lambda: self.send("large", LARGE), lambda: self.send("noise", b"\xff{nonsense")]
        threads = [threading.Thread(target=part) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.seconds = time.perf_counter() - began_at
        return self

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.base, api_key="none", max_retries=0)

    def ask(self) -> None:
        with self.client() as client:
            answer = client.completions.create(model=self.model, prompt=PROMPT, max_tokens=NEW_TOKENS, temperature=0)
        self.texts.append(answer.choices[0].text)

    def ask_for_stream(self) -> None:
        with self.client() as client:
            pieces = client.completions.create(
                model=self.model, prompt=PROMPT, max_tokens=NEW_TOKENS, temperature=0, stream=True
            )
            self.texts.append("".join(piece.choices[0].text for piece in pieces))

    def leave(self) -> None:
        """Leave in the middle of a long text."""
        with self.client() as client:
            pieces = client.completions.create(model=self.model, prompt="a", max_tokens=4096, stream=True)
            next(iter(pieces))
            pieces.close()
        self.left += 1

    def send(self, name: str, body: bytes) -> None:
        request = urllib.request.Request(f"{self.base}/completions", body, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request) as answer:
                self.statuses[name] = answer.status
        except urllib.error.HTTPError as error:
            with error:
                self.statuses[name] = (error.code, b'"type": "invalid_request_error"' in error.read())
