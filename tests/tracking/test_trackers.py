"""Figures go elsewhere as well, and training waits for none of it.

Weights & Biases and trackio are not among the packages that the tests need; where they are installed, they are tested.
"""

import importlib
import json
import os
import sqlite3
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from regpt.base.errors import UserError
from regpt.console.training import Console
from regpt.recipe.settings import to_toml
from regpt.tracking import trackers
from regpt.tracking.events import Rollback
from regpt.tracking.journal import EventRecord, Record, RunState, StepRecord, ValidationRecord, read_history
from regpt.tracking.trackers import TRACKERS, Trackers, metrics_of
from regpt.training.start import resume, train
from tests.conftest import tiny_recipe


def step(number: int, loss: float) -> StepRecord:
    return StepRecord(
        step=number, tokens=number * 8, loss=loss, gradient_norm=1.0, learning_rate=0.1, seconds=0.5, batch="x"
    )


def shown_by_tensorboard(run: Path) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("train/loss")]


def test_tensorboard_shows_no_step_twice_after_a_resume_or_a_going_back(tmp_path: Path) -> None:
    def write(records: list[Record], resumed_at: int | None) -> None:
        opened = Trackers(["tensorboard"], pytest.fail)
        opened.begin(tmp_path, {}, lambda step: 8, resumed_at)
        for record in records:
            opened.write(record)
        opened.close()

    write([step(number, 5.0) for number in range(1, 6)], None)  # and then it is killed
    write([step(4, 4.0), step(5, 4.0), EventRecord(step=4, detail=Rollback(from_step=5)), step(5, 3.0)], 3)
    assert shown_by_tensorboard(tmp_path) == [(1, 5.0), (2, 5.0), (3, 5.0), (4, 4.0), (5, 3.0)]


def test_bits_per_byte_are_a_metric_where_they_are_known() -> None:
    known = ValidationRecord(step=1, tokens=64, loss=5.0, windows=4, seconds=3.0, bits_per_byte=1.75)
    assert metrics_of(known, lambda step: 64)["validation/bits_per_byte"] == 1.75
    assert "validation/bits_per_byte" not in metrics_of(replace(known, bits_per_byte=0.0), lambda step: 64)


def test_folder_named_like_a_tracker_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier runs of wandb leave one in the current folder, which `python -m` puts first on the path."""
    (tmp_path / "some_tracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(TRACKERS, "wandb", ("some_tracker", Slow))
    with pytest.raises(UserError, match=r"run\.sinks = 'wandb'.*pip install") as caught:
        Trackers(["wandb"], pytest.fail)
    assert caught.value.code == 2
    (tmp_path / "some_tracker" / "__init__.py").touch()
    importlib.invalidate_caches()
    Trackers(["wandb"], pytest.fail)


class Slow:
    """A server that does not answer."""

    answer = threading.Event()

    def __init__(self, run: Path, settings: dict[str, object], resumed_at: int | None) -> None:
        self.answer.wait(60)

    def log(self, figures: object, step: int) -> None:
        """Accept the records that waited."""

    def close(self) -> None:
        """End quietly."""


def test_a_run_does_not_wait_for_a_sink_that_does_not_answer(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(TRACKERS, "wandb", ("regpt", Slow))
    monkeypatch.setattr(trackers, "FINISH_SECONDS", 0.2)
    try:
        recipe = tiny_recipe(tmp_path, run={"sinks": "wandb,tensorboard"})
        assert train(recipe, tmp_path / "a", console=Console()).history.status is RunState.FINISHED
    finally:
        Slow.answer.set()
    assert "the sink 'wandb' did not end within 0.2 s" in capsys.readouterr().out
    assert [number for number, _ in shown_by_tensorboard(tmp_path / "a")] == [1, 2, 3, 4, 5, 6]


def test_a_thread_that_is_unheard_silences_nobody_else(capsys: pytest.CaptureFixture[str]) -> None:
    other = threading.Thread(target=print, args=("of another thread",))
    with trackers.muted():
        print("of this one")
        other.start()
        other.join()
    print("afterwards")
    assert capsys.readouterr().out == "of another thread\nafterwards\n"


# The real packages, each in a process of its own


def run_and_resume(folder: Path, sink: str, **environment: str) -> str:
    """Six steps, three of them again from a checkpoint, and three more; returns what was printed."""
    recipe = tiny_recipe(folder, run={"sinks": sink})
    (folder / "tiny.toml").write_text(to_toml(recipe))
    where = ["--runs", str(folder / "runs")]
    printed = ""
    for words in (["train", str(folder / "tiny.toml"), *where], ["resume", "tiny", *where, "run.max_steps=9"]):
        command = [sys.executable, "-m", "regpt", *words]
        ended = subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False
        )
        printed += ended.stdout + ended.stderr
        assert ended.returncode == 0, printed
        for file in (folder / "runs/tiny/checkpoints/step_000006").glob("model.*"):
            file.unlink()  # so that the resume goes back to step 3
    assert "failed" not in printed and "let go" not in printed, printed
    return printed


def expected(run: Path) -> dict[int, float]:
    return {record.step: record.loss for record in read_history(run).steps}


def wandb_records(path: Path) -> Iterator[object]:
    """Of a .wandb file: pieces in blocks of 32 KiB, as in a LevelDB log, each whole record a protocol buffer."""
    from wandb.proto.wandb_internal_pb2 import Record as WandbRecord

    data, at, part = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32_768 - at % 32_768
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        part += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole one, or the last piece
            record = WandbRecord()
            record.ParseFromString(part)
            yield record
            part = b""


def test_weights_and_biases_keeps_the_steps_of_all_attempts_under_one_id(tmp_path: Path, texts: Path) -> None:
    pytest.importorskip("wandb", exc_type=ImportError)
    printed = run_and_resume(tmp_path, "wandb", WANDB_MODE="offline", HOME=str(tmp_path))
    losses: dict[int, float] = {}
    ids = []
    files = sorted((tmp_path / "runs/tiny/wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    for file in files:
        for record in wandb_records(file):
            if record.HasField("run"):
                ids.append(record.run.run_id)
            items = {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            if "train/loss" in items:
                losses[items["step"]] = items["train/loss"]  # the later attempt's stands
    assert losses == expected(tmp_path / "runs/tiny") and list(losses) == list(range(1, 10))
    assert len(set(ids)) == 1 and ids[0].startswith("tiny-")
    assert "Run history" not in printed


def test_trackio_keeps_the_steps_of_all_attempts_in_one_run(tmp_path: Path, texts: Path) -> None:
    pytest.importorskip("trackio", exc_type=ImportError)
    printed = run_and_resume(tmp_path, "trackio", TRACKIO_DIR=str(tmp_path / "trackio"))
    with sqlite3.connect(tmp_path / "trackio" / "regpt.db") as database:
        rows = database.execute("select run_id, step, metrics from metrics order by id").fetchall()
    losses = {at: json.loads(figures)["train/loss"] for _, at, figures in rows if b"train/loss" in bytes(figures)}
    assert losses == expected(tmp_path / "runs/tiny") and sorted(losses) == list(range(1, 10))
    assert len({run for run, _, _ in rows}) == 1
    assert "Trackio" not in printed and "\n* " not in printed


def test_a_resumed_run_reads_on_where_it_was(tmp_path: Path, texts: Path) -> None:
    train(tiny_recipe(tmp_path, run={"sinks": "tensorboard"}), tmp_path / "a")
    resume(tmp_path / "a", ["run.max_steps=9"])
    shown = dict(shown_by_tensorboard(tmp_path / "a"))
    assert shown == {number: pytest.approx(loss) for number, loss in expected(tmp_path / "a").items()}
