"""Faster and slower are said of what is so far apart that no load of the machine explains it, and of nothing less."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from regpt.fairness.claims import paired_tests
from regpt.fairness.loading import load_models
from regpt.stats.describe import describe_test
from regpt.stats.outcome import NotTested, Outcome
from regpt.stats.throughput import ThroughputTest, throughput_of
from regpt.stats.verdicts import Verdict, speed_verdict
from regpt.tracking.journal import History, StepRecord
from regpt.tracking.run import Run, open_run

TRIALS = Path(__file__).parent.parent / "fixtures" / "runs"
STEPS = 240
Planted = Callable[..., Run]


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    """A run with a journal on the disk whose steps took these seconds."""

    def plant(name: str, seconds: Sequence[float], other: float = 0.0) -> Run:
        shutil.copytree(TRIALS / "trial-050226", tmp_path / name)
        journal = tmp_path / name / "journal.jsonl"
        records = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
        one = next(record for record in records if record["kind"] == "step")
        first = [record for record in records if record["kind"] == "event"][:1]
        steps = [
            one | {"step": n, "tokens": 4096 * n, "loss": 9 - n / 100, "seconds": spent}
            for n, spent in enumerate(seconds, 1)
        ]
        detail = {"other_cpu_share": other}
        end = {"kind": "event", "event": "finished", "step": len(steps), "at": 2e9, "detail": detail}
        journal.write_text("".join(json.dumps(record) + "\n" for record in [*first, *steps, end]), encoding="utf-8")
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


OPPOSITE = {Outcome.FASTER: Outcome.SLOWER, Outcome.SLOWER: Outcome.FASTER}


def outcome_of(one: Run, other: Run) -> Outcome:
    """Return the outcome, after a check that the swapped pair has the opposite one."""
    outcome = speed_verdict(one, other).outcome
    assert speed_verdict(other, one).outcome is OPPOSITE.get(outcome, outcome)
    return outcome


def test_speed_under_uneven_load_is_shown_without_a_claim(planted: Planted) -> None:
    """The speed equals the other run's at first, then other work divides it by five, as a demo run once measured."""
    half = STEPS // 2
    one, other = planted("one", [*steady(0.34, steps=half), *steady(1.9, steps=half + 1)]), planted("two", steady(0.37))
    assert outcome_of(one, other) is Outcome.NOT_TESTED
    verdict = speed_verdict(one, other)
    assert isinstance(verdict.test, ThroughputTest) and verdict.test.is_twofold and verdict.test.is_uneven
    assert verdict.reason is NotTested.UNEVEN_SPEED
    low, high = (f"{edge(pace.groups):,.0f}" for pace in filter(None, [throughput_of(one)]) for edge in (min, max))
    assert f"{low} to {high}" in describe_test(verdict, "two")
    assert paired_tests(*load_models(["one", "two"], one.path.parent)).speed is None


def test_speed_threefold_is_claimed_only_on_a_quiet_machine(planted: Planted) -> None:
    slow, quick = steady(3.0), steady(1.0)
    assert outcome_of(planted("a", slow), planted("b", quick)) is Outcome.SLOWER
    busy = speed_verdict(planted("c", slow, other=0.4), planted("d", quick))
    assert (busy.outcome, busy.reason) == (Outcome.NOT_TESTED, NotTested.BUSY_MACHINE)
    unknown = speed_verdict(planted("e", slow, other=-1.0), planted("f", quick))
    assert (unknown.outcome, unknown.reason) == (Outcome.NOT_TESTED, NotTested.UNKNOWN_LOAD)
    assert (unknown.ours, unknown.theirs) == pytest.approx((4096 / 3, 4096), rel=0.05)


@pytest.mark.parametrize("times", [1.0, 1.03, 1.05])
def test_speed_few_percent_is_not_reported_under_load(planted: Planted, times: float) -> None:
    """Check 300 pairs of journals."""
    random, run = np.random.default_rng(1), planted("run", steady(1.0, steps=1))
    pairs = [[with_seconds(run, loaded(random, seconds)) for seconds in (times, 1.0)] for _ in range(300)]
    outcomes = [speed_verdict(one, other).outcome for one, other in pairs]
    assert sum(outcome.is_difference for outcome in outcomes) <= 0.05 * len(outcomes)


def with_seconds(run: Run, seconds: Sequence[float]) -> Run:
    one = run.history.steps[0]
    steps: list[StepRecord] = [replace(one, step=n, seconds=spent) for n, spent in enumerate(seconds, 1)]
    return replace(run, history=History(steps=steps, events=run.history.events))


def test_speed_tenth_is_reported_on_a_quiet_machine(planted: Planted) -> None:
    quiet = planted("quiet", steady(1.0, seed=1))
    assert outcome_of(planted("tenth", steady(0.9, seed=2)), quiet) is Outcome.FASTER
    assert outcome_of(planted("thousandth", steady(0.999, seed=3)), quiet) is Outcome.INDISTINGUISHABLE


@pytest.mark.parametrize("steps", [8, 20, 47, 95])
def test_short_runs_are_compared_only_where_twofold(planted: Planted, steps: int) -> None:
    random, one = np.random.default_rng(2), planted("run", steady(1.0, steps=1))
    untested, slower = Outcome.NOT_TESTED, Outcome.SLOWER
    for times, outcome in ((1.0, untested), (1.9, untested), (2.2, slower), (3.0, slower)):
        slow, quick = steady(times, steps=steps, seed=int(random.integers(99))), steady(1.0, steps=steps)
        first, second = with_seconds(one, [20 * times, *slow[1:]]), with_seconds(one, [20.0, *quick[1:]])
        assert outcome_of(first, second) is outcome


def test_speed_outcome_never_contradicts_the_medians(planted: Planted) -> None:
    run = planted("run", steady(1.0, steps=1))
    changing = with_seconds(run, [0.1, 1.0, 1.0] * 40)  # quick groups, and a slow median
    for other in (with_seconds(run, steady(0.5)), with_seconds(run, steady(0.8))):
        assert outcome_of(changing, other) in (Outcome.SLOWER, Outcome.INDISTINGUISHABLE)


def test_speed_outcome_ignores_one_slow_compilation_step(planted: Planted) -> None:
    quiet = planted("quiet", steady(1.0, seed=1))
    slow: Verdict = speed_verdict(planted("compiled", [60.0, *steady(1.0, seed=2)]), quiet)
    assert slow.outcome is Outcome.INDISTINGUISHABLE
    assert speed_verdict(planted("faster", [60.0, *steady(0.8, seed=3)]), quiet).outcome is Outcome.FASTER
