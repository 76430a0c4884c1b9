"""Faster and slower are said of what is so far apart that no load of the machine explains it, and of nothing less."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from regpt.compare.models import open_all
from regpt.compare.tables import against
from regpt.report.page import write_report
from regpt.report.scores import Baseline
from regpt.stats.throughput import throughput_of
from regpt.stats.verdicts import ALIKE, Verdict, speed_verdict
from regpt.tracking.journal import History, StepRecord
from regpt.tracking.run import Run, open_run

TRIALS = Path(__file__).parent.parent / "fixtures" / "runs"
STEPS = 240
Planted = Callable[[str, Sequence[float]], Run]


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    """A run with a journal on the disk whose steps took these seconds."""

    def plant(name: str, seconds: Sequence[float]) -> Run:
        shutil.copytree(TRIALS / "trial-050226", tmp_path / name)
        journal = tmp_path / name / "journal.jsonl"
        records = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
        one = next(record for record in records if record["kind"] == "step")
        first = [record for record in records if record["kind"] == "event"][:1]
        steps = [
            one | {"step": n, "tokens": 4096 * n, "loss": 9 - n / 100, "seconds": spent}
            for n, spent in enumerate(seconds, 1)
        ]
        journal.write_text("".join(json.dumps(record) + "\n" for record in [*first, *steps]), encoding="utf-8")
        return open_run(tmp_path / name)

    return plant


def steady(seconds: float, jitter: float = 0.01, steps: int = STEPS, seed: int = 0) -> list[float]:
    return list(seconds * np.exp(jitter * np.random.default_rng(seed).standard_normal(steps)))


def loaded(random: np.random.Generator, seconds: float, steps: int = STEPS) -> list[float]:
    """Other work comes and goes, each time for some 5 to 60 steps, and makes a step up to 1.6 times as long."""
    loads: list[float] = []
    while len(loads) < steps:
        loads += [float(random.choice([1.0, random.uniform(1.0, 1.6)]))] * int(random.integers(5, 60))
    return list(seconds * np.array(loads[:steps]) * np.exp(0.01 * random.standard_normal(steps)))


def said(one: Run, other: Run) -> str:
    claim = speed_verdict(one, other)
    assert speed_verdict(other, one).word == {"faster": "slower", "slower": "faster"}.get(claim.word, claim.word)
    return claim.word


def test_threefold_is_said_of_a_machine_that_was_busy_for_half_of_the_run_and_so_is_its_being_busy(
    planted: Planted,
) -> None:
    """As a demo was measured beside other work: as fast as the other at first, then a fifth as fast."""
    half = STEPS // 2
    one, other = planted("one", [*steady(0.34, steps=half), *steady(1.9, steps=half + 1)]), planted("two", steady(0.37))
    assert said(one, other) == "slower"
    text = write_report(one, [Baseline("two", other.recipe, other)]).read_text(encoding="utf-8")
    opening, table = text.split("## Model Architecture")[0], text.split("## Performance Analysis")[1]
    claim = speed_verdict(one, other)
    low, high = (f"{edge(pace.groups):,.0f}" for pace in filter(None, [throughput_of(one)]) for edge in (min, max))
    assert f"groups of steps ran at {low} to {high} here" in claim.because
    for part in (opening, table):
        assert "slower" in part and claim.because in part and "other work on the machine" in part
    theirs, ours = claim.figures
    lines = against(*open_all(["one", "two"], one.path.parent))
    assert f"- speed: {ours} against {theirs}, slower: {claim.because}" in lines


def test_threefold_under_two_unlike_loads_is_said(planted: Planted) -> None:
    random = np.random.default_rng(0)
    one, two = planted("one", loaded(random, 3.0)), planted("two", loaded(random, 1.0))
    assert said(one, two) == "slower"
    assert "as under other work on the machine" in speed_verdict(one, two).in_short
    assert "other work" not in speed_verdict(planted("c", steady(3.0)), planted("d", steady(1.0))).in_short


@pytest.mark.parametrize("times", [1.0, 1.03, 1.05])
def test_a_few_percent_under_loads_that_come_and_go_are_not_said(planted: Planted, times: float) -> None:
    """Of 300 pairs of journals."""
    random, run = np.random.default_rng(1), planted("run", steady(1.0, steps=1))
    pairs = [[with_seconds(run, loaded(random, seconds)) for seconds in (times, 1.0)] for _ in range(300)]
    words = [speed_verdict(one, other).word for one, other in pairs]
    assert sum(word != ALIKE for word in words) <= 0.05 * len(words)


def with_seconds(run: Run, seconds: Sequence[float]) -> Run:
    one = run.history.steps[0]
    steps: list[StepRecord] = [replace(one, step=n, seconds=spent) for n, spent in enumerate(seconds, 1)]
    return replace(run, history=History(steps=steps, events=run.history.events))


def test_a_tenth_on_a_quiet_machine_is_said_and_a_thousandth_is_not(planted: Planted) -> None:
    quiet = planted("quiet", steady(1.0, seed=1))
    assert said(planted("tenth", steady(0.9, seed=2)), quiet) == "faster"
    assert said(planted("thousandth", steady(0.999, seed=3)), quiet) == ALIKE


@pytest.mark.parametrize("steps", [8, 20, 47, 95])
def test_of_short_runs_only_twofold_is_said(planted: Planted, steps: int) -> None:
    random, one = np.random.default_rng(2), planted("run", steady(1.0, steps=1))
    for times, word in ((1.0, "not tested"), (1.9, "not tested"), (2.2, "slower"), (3.0, "slower")):
        slow, quick = steady(times, steps=steps, seed=int(random.integers(99))), steady(1.0, steps=steps)
        assert said(with_seconds(one, [20 * times, *slow[1:]]), with_seconds(one, [20.0, *quick[1:]])) == word


def test_a_word_never_says_the_other_of_what_the_figures_show(planted: Planted) -> None:
    run = planted("run", steady(1.0, steps=1))
    changing = with_seconds(run, [0.1, 1.0, 1.0] * 40)  # quick groups, and a slow median
    for other in (with_seconds(run, steady(0.5)), with_seconds(run, steady(0.8))):
        assert said(changing, other) in ("slower", ALIKE)


def test_one_slow_step_as_of_compilation_moves_nothing(planted: Planted) -> None:
    quiet = planted("quiet", steady(1.0, seed=1))
    slow: Verdict = speed_verdict(planted("compiled", [60.0, *steady(1.0, seed=2)]), quiet)
    assert slow.word == ALIKE
    assert speed_verdict(planted("faster", [60.0, *steady(0.8, seed=3)]), quiet).word == "faster"
