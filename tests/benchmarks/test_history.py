"""The history of benchmarks keeps every run, and the page shows the newest run of each part."""

from pathlib import Path

import pytest

from benchmarks import history, step
from benchmarks.history import Goal, Measure, Section, measure_of, read_history, record
from benchmarks.results_page import FILE, page_text, write_page


def section(*rounds: float, goal: Goal | None = None, text: str = "words") -> Section:
    return Section("Speed", text, (measure_of("theirs / ours", rounds, goal),))


def test_measure_is_the_median_of_its_rounds_with_their_range() -> None:
    found = measure_of("a", [3.0, 1.0, 2.5], unit="s")
    assert found == Measure("a", 2.5, 1.0, 3.0, 3, "s")
    assert found.shown == "2.5 s (1 to 3, 3 rounds)" and measure_of("a", [0.1234]).shown == "0.123"


@pytest.mark.parametrize(
    ("goal", "value", "kept"),
    [(Goal(3), 3.0, True), (Goal(3), 2.99, False), (Goal(3, at_most=True), 3.0, True), (Goal(3, True), 3.01, False)],
)
def test_goal_is_kept_up_to_its_value(goal: Goal, value: float, kept: bool) -> None:
    assert goal.is_kept(value) is kept


def test_every_run_stays_in_the_history_and_the_newest_has_a_text(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    for part, value in (("step", 1.0), ("loader", 9.0), ("step", 2.0)):
        entries = record(part, section(value, goal=Goal(1.5)), path)
    assert read_history(path) == entries
    assert [(entry.part, entry.section.measures[0].value) for entry in entries] == [
        ("step", 1.0),
        ("loader", 9.0),
        ("step", 2.0),
    ]
    assert [entry.section.text for entry in entries] == ["", "words", "words"]
    assert entries[0].machine.threads >= 1 and entries[0].date.count("-") == 2


def test_page_shows_the_newest_run_of_each_part_and_whether_its_goal_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    record("step", section(1.0, 2.0, 1.5, goal=Goal(1.5)), path)
    record("memory", section(0.8, goal=Goal(0.7, at_most=True)), path)
    entries = record("step", section(1.0, 1.2, 1.1, goal=Goal(1.5), text="news"), path)
    lines = page_text(entries).splitlines()
    assert f"| theirs / ours | 1.1 (1 to 1.2, 3 rounds) | ≥ 1.5 | **no** | {entries[0].date} |" in lines
    assert f"| theirs / ours | 0.8 | ≤ 0.7 | **no** | {entries[0].date} |" in lines
    assert "news" in lines and lines.count("words") == 1 and lines.count("## Speed") == 2


def test_each_part_with_measures_has_a_plot_in_light_and_dark(tmp_path: Path) -> None:
    path, images = tmp_path / "history.json", tmp_path / "img"
    record("text", Section("Text", "no figures"), path)
    record("step", section(1.0), path)
    entries = record("step", section(2.0, 3.0, goal=Goal(1.0)), path)
    write_page(entries, tmp_path / "results.md", images)
    assert sorted(file.name for file in images.iterdir()) == ["bench-step-dark.svg", "bench-step.svg"]
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == page_text(entries)


def test_page_in_the_repository_is_written_from_its_history() -> None:
    assert FILE.read_text(encoding="utf-8") == page_text(read_history(history.FILE))


@pytest.mark.nightly
def test_comparison_with_nanogpt_gives_a_ratio_with_a_goal() -> None:
    found = step.report(["nanogpt"], ["7M"], ["float32"], rounds=1)
    speed, memory = found.measures
    assert speed.name == "step, 7M, float32: nanogpt / regpt" and speed.goal == Goal(3.0) and speed.value > 0
    assert 0 < memory.value < 10 and "| nanogpt | 7M | float32 |" in found.text
    assert found.title == "A training step against nanogpt"
