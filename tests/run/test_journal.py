"""The journal tells one line of development, whatever interrupted it."""

from pathlib import Path

from regpt.run.journal import EventRecord, Journal, SampleRecord, StepRecord, ValidationRecord, read_history


def step(number: int, loss: float) -> StepRecord:
    return StepRecord(
        step=number, tokens=number * 8, loss=loss, gradient_norm=1.0, learning_rate=0.1, seconds=0.5, batch="x"
    )


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    records = [
        EventRecord(step=0, event="started", detail={"device": "é"}),
        ValidationRecord(step=0, tokens=0, loss=10.8, windows=4, seconds=0.1),
        step(1, 0.1 + 0.2),
    ]
    journal = Journal(tmp_path)
    for record in records:
        journal.write(record)
    history = read_history(tmp_path)
    assert [*history.events, *history.validations, *history.steps] == records
    assert history.step == 1 and history.status == "running or killed"


def test_after_a_kill_and_a_resume_no_step_stands_twice(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write(EventRecord(step=0, event="started"))
    for number in (1, 2, 3):
        journal.write(step(number, 5.0))
    with journal.path.open("a") as file:
        file.write('{"kind": "step", "step": 4, "lo')  # killed while writing
    journal = Journal(tmp_path)
    journal.write(EventRecord(step=2, event="resumed"))
    journal.write(step(3, 4.0))
    history = read_history(tmp_path)
    assert [(s.step, s.loss) for s in history.steps] == [(1, 5.0), (2, 5.0), (3, 4.0)]
    assert [e.event for e in history.events] == ["started", "resumed"]
    assert len(journal.path.read_text().splitlines()) == 7  # nothing was rewritten


def test_text_with_any_line_separator_stays_on_its_line(tmp_path: Path) -> None:
    texts = ["a\u2028b", "c\x85d\u2029", "e\nf\r"]
    Journal(tmp_path).write(SampleRecord(step=1, prompt="", texts=texts, seed=1, top_k=1))
    assert read_history(tmp_path).samples[0].texts == texts


def test_a_later_versions_records_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text('{"kind": "moon", "phase": 3}\n[1]\n\n')
    assert read_history(tmp_path).status == "empty"
