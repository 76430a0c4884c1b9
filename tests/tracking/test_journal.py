"""The journal tells one line of development, whatever interrupted it."""

import json
from pathlib import Path

import pytest

from regpt.tracking.events import Event, Resumed, Rollback, Started
from regpt.tracking.journal import (
    EventRecord,
    History,
    Journal,
    JournalReader,
    RunState,
    SampleRecord,
    SkippedRecord,
    StepRecord,
    ValidationRecord,
    read_history,
    to_json,
)
from regpt.tracking.rejections import Rejection, RejectionKind


def step(number: int, loss: float) -> StepRecord:
    return StepRecord(
        step=number, tokens=number * 8, loss=loss, gradient_norm=1.0, learning_rate=0.1, seconds=0.5, batch="x"
    )


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    records = [
        EventRecord(step=0, detail=Started(device="é")),
        ValidationRecord(step=0, tokens=0, loss=10.8, windows=4, seconds=0.1),
        step(1, 0.1 + 0.2),
    ]
    journal = Journal(tmp_path)
    for record in records:
        journal.write(record)
    history = read_history(tmp_path)
    assert [*history.events, *history.validations, *history.steps] == records
    assert history.step == 1 and history.status is RunState.RUNNING


def test_after_a_kill_and_a_resume_no_step_stands_twice(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write(EventRecord(step=0, detail=Started()))
    for number in (1, 2, 3):
        journal.write(step(number, 5.0))
    with journal.path.open("a") as file:
        file.write('{"kind": "step", "step": 4, "lo')  # killed while writing
    journal = Journal(tmp_path)
    journal.write(EventRecord(step=2, detail=Resumed()))
    journal.write(step(3, 4.0))
    history = read_history(tmp_path)
    assert [(s.step, s.loss) for s in history.steps] == [(1, 5.0), (2, 5.0), (3, 4.0)]
    assert [e.event for e in history.events] == [Event.STARTED, Event.RESUMED]
    assert len(journal.path.read_text().splitlines()) == 7  # nothing was rewritten


def test_text_with_any_line_separator_stays_on_its_line(tmp_path: Path) -> None:
    texts = ["a\u2028b", "c\x85d\u2029", "e\nf\r"]
    Journal(tmp_path).write(SampleRecord(step=1, prompt="", texts=texts, seed=1, top_k=1))
    assert read_history(tmp_path).samples[0].texts == texts


def test_a_later_versions_records_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text('{"kind": "moon", "phase": 3}\n[1]\n\n')
    assert read_history(tmp_path).status is RunState.EMPTY


@pytest.mark.parametrize(
    ("items", "count", "size", "published", "full"),
    [
        ("10,042 items", 10_042, 10_042, True, True),
        ("subset of 20 of 10,042 items", 20, 10_042, True, False),
        ("12 items of items/hellaswag.jsonl", 12, 12, False, False),
        ("subset of 8 of 12 items of items/subset of 3.jsonl", 8, 12, False, False),
        ("a description of a later version", 0, 0, False, False),
    ],
)
def test_item_counts_of_version_0_1_are_read_from_the_description(
    tmp_path: Path, items: str, count: int, size: int, published: bool, full: bool
) -> None:
    values: dict[str, object] = {"kind": "task", "step": 0, "tokens": 0, "task": "hellaswag", "items": items}
    values |= {"digest": "d", "accuracy": {}, "standard_error": {}, "cut": 0, "path": "", "seconds": 1.0}
    (tmp_path / "journal.jsonl").write_text(json.dumps(values) + "\n")
    (record,) = read_history(tmp_path).tasks
    assert (record.count, record.dataset_size, record.published) == (count, size, published)
    assert record.is_full_set is full and record.is_subset is (count < size)
    counts: dict[str, object] = {"count": 5, "dataset_size": 9, "published": True}  # as this version writes them
    (tmp_path / "journal.jsonl").write_text(json.dumps(values | counts) + "\n")
    (record,) = read_history(tmp_path).tasks
    assert (record.count, record.dataset_size, record.published) == (5, 9, True)


def test_errors_of_a_score_are_read_under_the_earlier_name(tmp_path: Path) -> None:
    """Their old name was that of a number in other records, and some readers of JSON lines refuse that."""
    values = {"kind": "task", "step": 0, "tokens": 0, "task": "hellaswag", "items": "12 items", "digest": "d"}
    values |= {"accuracy": {"by_sum": 0.5}, "standard_error": {"by_sum": 0.1}, "cut": 0, "path": "", "seconds": 1.0}
    (tmp_path / "journal.jsonl").write_text(json.dumps(values) + "\n")
    (record,) = read_history(tmp_path).tasks
    assert record.standard_errors == {"by_sum": 0.1}
    written = to_json(record)
    assert written["standard_errors"] == {"by_sum": 0.1} and "standard_error" not in written


# Following a journal that another process writes


def eventful(path: Path) -> bytes:
    """A journal with everything that can happen to one: a kill in the middle of a line, a resume, a going back."""
    journal = Journal(path)
    journal.write(EventRecord(step=0, detail=Started(device="é")))
    for number in range(1, 6):
        journal.write(step(number, 5.0))
    journal.write(SampleRecord(step=5, prompt="", texts=["…\u2028ü"], seed=1, top_k=1))
    with journal.path.open("a") as file:
        file.write('{"kind": "step", "step": 6, "lo')
    journal = Journal(path)
    journal.write(EventRecord(step=4, detail=Resumed()))
    for number in range(5, 9):
        journal.write(step(number, 4.0))
    journal.write(
        SkippedRecord(step=9, tokens=72, reason=Rejection(kind=RejectionKind.LOSS_NAN), batch="x", seconds=0.5)
    )
    journal.write(EventRecord(step=6, detail=Rollback(from_step=9)))
    journal.write(step(7, 3.0))
    return journal.path.read_bytes()


@pytest.mark.parametrize("piece", [1, 7, 100, 1000])
def test_a_journal_read_as_it_grows_is_the_one_read_at_once(tmp_path: Path, piece: int) -> None:
    whole = eventful(tmp_path)
    (tmp_path / "a").mkdir()
    follower = JournalReader(tmp_path / "a")
    assert follower.update() == History()
    for begin in range(0, len(whole), piece):
        with follower.path.open("ab") as file:
            file.write(whole[begin : begin + piece])
        follower.update()
        if piece > 1:
            assert follower.history == read_history(tmp_path / "a")
    assert follower.history == read_history(tmp_path)
    assert [(s.step, s.loss) for s in follower.history.steps[-4:]] == [(4, 5.0), (5, 4.0), (6, 4.0), (7, 3.0)]
    assert not follower.history.skipped and len(follower.history.events) == 3


def test_what_was_read_is_not_read_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for number in range(1, 101):
        journal.write(step(number, 5.0))
    follower = JournalReader(tmp_path)
    assert len(follower.update().steps) == 100
    with journal.path.open("r+b") as file:
        file.write(b"#" * (journal.path.stat().st_size // 2))  # whoever reads the first half again misses its records
    journal.write(step(101, 4.0))
    assert [record.step for record in follower.update().steps] == list(range(1, 102))
    assert len(read_history(tmp_path).steps) < 60


def test_another_journal_in_its_place_is_read_from_its_beginning(tmp_path: Path) -> None:
    follower = JournalReader(tmp_path)
    for attempt, (count, loss) in enumerate([(10, 5.0), (3, 4.0), (40, 3.0)]):  # then a shorter one, then a longer one
        journal = Journal(tmp_path)
        journal.path.unlink(missing_ok=True)
        if attempt == 2:
            assert follower.update() == History()  # between the two it was gone
        for number in range(1, count + 1):
            journal.write(step(number, loss))
        assert [record.loss for record in follower.update().steps] == [loss] * count
    text = journal.path.read_text().replace("3.0", "2.0")
    journal.path.write_text(text)  # of the same length
    assert [record.loss for record in follower.update().steps] == [2.0] * 40
