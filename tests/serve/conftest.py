"""Runs with made-up journals, and a client of a server that shows them."""

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from regpt.serve.access import Access
from regpt.tracking.events import Resumed, Started, Stopped
from regpt.tracking.journal import EventRecord, Record, SampleRecord, StepRecord, ValidationRecord, to_json
from tests.helpers.browser import Page, opened_browser

# Without the extra `serve`, which `make` installs, there is nothing to test.
collect_ignore_glob = [] if importlib.util.find_spec("fastapi") else ["test_*.py"]
TRIAL = Path(__file__).parent.parent / "fixtures" / "runs" / "trial-050226"
HOST = "http://127.0.0.1:8000"


class MadeRun:
    """A run directory whose journal a test writes."""

    def __init__(self, root: Path, name: str) -> None:
        self.path = root / name
        self.path.mkdir(parents=True)
        for file in ("recipe.toml", "environment.json"):
            shutil.copy(TRIAL / file, self.path)
        self.write(EventRecord(step=0, detail=Started(device="cpu"), at=1.0))

    def write(self, *records: Record) -> None:
        """Append all records at once, which a journal writes and flushes one by one."""
        lines = [json.dumps(to_json(record)) + "\n" for record in records]
        with (self.path / "journal.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(lines)

    def train(self, first: int, last: int, offset: float = 0.0) -> None:
        """Write steps; the loss of step n is 10 - n / 1000 + offset."""
        self.write(*(step(n, loss=10 - n / 1000 + offset) for n in range(first, last + 1)))

    def resume(self, at: int) -> None:
        self.write(EventRecord(step=at, detail=Resumed(device="cpu"), at=2.0))

    def stop(self, at: int) -> None:
        self.write(EventRecord(step=at, detail=Stopped(signal="SIGINT"), at=3.0))


def step(number: int, loss: float = 3.0, **values: Any) -> StepRecord:
    fields = {"gradient_norm": 1.0, "learning_rate": 1e-3, "seconds": 0.5, "batch": "", "tokens": 4096 * number}
    return StepRecord(step=number, loss=loss, **{**fields, **values})


def validation(number: int, loss: float = 4.0) -> ValidationRecord:
    return ValidationRecord(
        step=number, tokens=4096 * number, loss=loss, windows=8, seconds=1.0, standard_error=0.25, bits_per_byte=1.5
    )


def sample(number: int, *texts: str) -> SampleRecord:
    return SampleRecord(step=number, prompt="Once", texts=list(texts), seed=1, top_k=50)


@pytest.fixture(scope="package")
def chromium() -> Iterator[Page]:
    """Return a page of a browser, which all tests of pages share."""
    with opened_browser() as page:
        yield page


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


@pytest.fixture
def made(root: Path) -> MadeRun:
    return MadeRun(root, "a")


def client_of(root: Path, access: Access | None = None, base_url: str = HOST) -> Any:
    from starlette.testclient import TestClient

    from regpt.serve.app import create_app

    return TestClient(create_app(root, access or Access()), base_url=base_url, raise_server_exceptions=False)


@pytest.fixture
def client(root: Path) -> Any:
    return client_of(root)
