"""A reader that asks with its cursor always has the history that the journal has, also after it was rewound."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regpt.serve.curves import largest_point, point_starts
from regpt.serve.updates import LISTS, Cursor, FollowedRuns
from regpt.tracking.events import OutOfMemory, Rollback
from regpt.tracking.journal import EventRecord, read_history
from tests.serve.conftest import MadeRun, client_of, sample, step, validation


class Reader:
    """What a page keeps of a run: lists that each answer cuts and extends."""

    def __init__(self, ask: Callable[[str], dict[str, Any]]) -> None:
        self.ask, self.cursor = ask, ""
        self.lists: dict[str, list[Any]] = {}
        self.received = 0

    def update(self) -> "Reader":
        found = self.ask(self.cursor)
        self.cursor = found["cursor"]
        curves = found["curves"]
        self.received = len(curves["step"]) + sum(len(found[name]["records"]) for name in (*LISTS, "events"))
        for name, values in curves.items():
            if isinstance(values, list):
                self.replace(f"curves.{name}", curves["from"], values)
        for name in (*LISTS, "events"):
            self.replace(name, found[name]["from"], found[name]["records"])
        return self

    def replace(self, name: str, kept: int, added: list[Any]) -> None:
        mine = self.lists.setdefault(name, [])
        assert kept <= len(mine), name
        mine[kept:] = added


def asking(client: Any) -> Callable[[str], dict[str, Any]]:
    """Return a function that asks the server for the run a with a cursor."""

    def ask(cursor: str) -> dict[str, Any]:
        answer = client.get("/api/runs/a", params={"cursor": cursor})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    return ask


@pytest.fixture
def reader(client: Any, made: MadeRun) -> Reader:
    return Reader(asking(client))


def assert_same_as_new(reader: Reader) -> None:
    """Check that the reader has what one has that asks for the first time."""
    assert reader.lists == Reader(reader.ask).update().lists


def test_update_sends_only_what_is_new(made: MadeRun, reader: Reader) -> None:
    made.train(1, 700)
    made.write(validation(700), sample(700, "Once a"))
    reader.update()
    made.train(701, 710)
    made.write(validation(710))
    reader.update()
    assert reader.received <= 12  # ten points, one that may have grown, one validation
    assert reader.lists["curves.step"] == list(range(1, 711))
    assert [one["step"] for one in reader.lists["validations"]] == [700, 710]
    reader.update()
    assert reader.received == 1
    assert_same_as_new(reader)


@pytest.mark.parametrize("grown", [0, 3, 40])
def test_cursor_survives_a_resume_that_drops_steps(made: MadeRun, reader: Reader, grown: int) -> None:
    made.train(1, 60)
    made.write(validation(50), sample(60, "Once a"))
    reader.update()
    made.resume(40)
    if grown:
        made.train(41, 40 + grown, offset=1.0)
    reader.update()
    assert reader.lists["curves.step"] == list(range(1, 41 + grown))
    assert reader.lists["validations"] == [] and reader.lists["samples"] == []
    assert_same_as_new(reader)


def test_cursor_survives_two_rewinds_between_requests(made: MadeRun, reader: Reader) -> None:
    made.train(1, 60)
    reader.update()
    made.resume(20)
    made.train(21, 70, offset=1.0)
    made.write(EventRecord(step=50, detail=Rollback(from_step=70, excluded_batches=[60]), at=4.0))
    made.train(51, 55, offset=2.0)
    reader.update()
    losses = reader.lists["curves.loss"]
    assert losses[19] == pytest.approx(9.98) and losses[20] == pytest.approx(10.979)
    assert losses[54] == pytest.approx(11.945) and len(losses) == 55
    assert_same_as_new(reader)


def test_cursor_of_a_replaced_journal_starts_again(made: MadeRun, reader: Reader) -> None:
    made.train(1, 30)
    reader.update()
    (made.path / "journal.jsonl").unlink()
    made.write(EventRecord(step=0, detail=OutOfMemory(), at=9.0), *(step(n, loss=1.0) for n in range(1, 50)))
    reader.update()
    assert reader.lists["curves.loss"] == [1.0] * 49 and len(reader.lists["events"]) == 1
    assert_same_as_new(reader)


def test_reader_of_a_forgotten_run_continues_with_its_cursor(
    root: Path, made: MadeRun, client: Any, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regpt.serve.updates.MOST_FOLLOWED", 1)
    made.train(1, 30)
    reader.update()
    MadeRun(root, "b")
    assert client.get("/api/runs/b").status_code == 200  # the server forgets a
    made.resume(20)
    made.train(21, 25)
    reader.update()
    assert reader.lists["curves.step"] == list(range(1, 26))
    assert Reader(asking(client_of(root))).update().lists == reader.lists


@settings(max_examples=15)
@given(actions=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30), st.booleans()), max_size=8))
def test_reader_always_has_the_history_of_the_journal(
    actions: list[tuple[int, int, bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("runs")
    made, followed, at = MadeRun(root, "a"), FollowedRuns(root), 0
    reader = Reader(lambda cursor: followed.update(made.path, Cursor.parse(cursor)))
    for steps, back, asks in actions:
        made.train(at + 1, at + steps, offset=back)
        at += steps
        made.write(validation(at, loss=float(back)))
        if asks:
            reader.update()
        if back:
            at = max(0, at - back)
            made.resume(at)
    reader.update()
    history = read_history(made.path)
    assert reader.lists["curves.step"] == [one.step for one in history.steps]
    assert reader.lists["curves.loss"] == pytest.approx([one.loss for one in history.steps])
    assert [one["loss"] for one in reader.lists["validations"]] == [one.loss for one in history.validations]


def test_cursor_of_another_form_is_refused(made: MadeRun, client: Any) -> None:
    for text in ("x", "1.2", "-1.0.0.0.0.0.0.0.0", "1" * 5000):
        answer = client.get("/api/runs/a", params={"cursor": text})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "cursor"


# Curves


@pytest.mark.parametrize("count", [0, 1, 512, 513, 1024, 1025, 5000, 40_000, 1_000_000])
def test_curve_has_about_as_many_points_as_a_plot_has_pixels(count: int) -> None:
    starts = point_starts(count, largest_point(count))
    assert list(starts[:512]) == list(range(min(count, 512)))
    assert len(starts) <= 4300 and (len(starts) > 700 or count == len(starts))
    assert all(width > 0 for width in starts[1:] - starts[:-1]) and (not count or starts[-1] < count)


def test_points_stay_where_they_are_when_a_run_grows() -> None:
    for count in (600, 3000, 20_000):
        largest = largest_point(count)
        grown = point_starts(count + 100, largest)
        assert list(point_starts(count, largest)) == list(grown[: len(point_starts(count, largest))])


def test_merged_points_keep_every_spike_and_the_mean(made: MadeRun, client: Any) -> None:
    losses = {n: 3.0 + (n % 2) for n in range(1, 5001)}
    losses[4001], losses[4002] = 50.0, 0.5
    made.write(*(step(n, loss=loss) for n, loss in losses.items()))
    curves = client.get("/api/runs/a").json()["curves"]
    assert max(curves["loss_max"]) == 50.0 and min(curves["loss_min"]) == 0.5
    assert sum(curves["count"]) == 5000 and curves["step"][-1] == 5000 and len(curves["step"]) < 2500
    total = sum(loss * count for loss, count in zip(curves["loss"], curves["count"], strict=True))
    assert total == pytest.approx(sum(losses.values()), rel=1e-5)


def test_loss_that_is_not_finite_is_null(made: MadeRun, client: Any) -> None:
    made.write(step(1, loss=float("nan")), step(2, loss=float("inf")), step(3, loss=2.0, seconds=0.0))
    curves = client.get("/api/runs/a").json()["curves"]
    assert curves["loss"] == [None, None, 2.0] and curves["loss_max"] == [None, None, 2.0]
    assert curves["tokens_per_second"][2] is None


def test_large_points_are_updated_from_the_last_one_on(made: MadeRun, reader: Reader) -> None:
    made.train(1, 3000)
    reader.update()
    for end in (3001, 3003, 3100):
        made.train(len(read_history(made.path).steps) + 1, end)
        reader.update()
        assert reader.received <= 110
    assert_same_as_new(reader)
    made.resume(2500)
    reader.update()
    assert_same_as_new(reader)
    made.train(2501, 4200)  # points become larger
    reader.update()
    assert_same_as_new(reader)
