"""Plant nulls, a bad change and a good one in an ablation of a tiny model, and count what the ablation calls.

A null is the base with other initial weights, so each call of one is false. At the 5 % level 1 of 20 is expected
before Holm's correction; all are compared with the same runs of the base, so the number varies more than that of
independent tests. The bad change is ten times the learning rate without warm-up, the good one is Muon.

    python -m benchmarks.planted_nulls            20 nulls, 3 seeds: 69 runs of a few seconds, in this process
    python -m benchmarks.planted_nulls --quick    1 null, 2 seeds, 3 steps: shows that it works, and no more

Runs are kept in --into, so a call that was stopped continues where it was.
"""

import argparse
import contextlib
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from regpt.ablation.design import BASE, Arm, Design, null_arms, open_design
from regpt.ablation.effects import Effect, Results, results_of
from regpt.ablation.page import write_page
from regpt.ablation.trials import run_trials
from regpt.ablation.workers import Result, Workers
from regpt.base.errors import UserError
from regpt.cli.main import main as regpt
from regpt.stats.outcome import LEVEL

RATE = 1e-2
BAD = Arm("bad", (f"optimizer.max_lr={10 * RATE}", f"optimizer.min_lr={RATE}", "optimizer.warmup_steps=0"))
MUON = Arm("muon", ("optimizer.kind=muon", "optimizer.muon_lr=0.04", "optimizer.muon_momentum_warmup_steps=20"))
SMALLEST = 0.01  # nats
# Two layers of width 32: the head, 50,304 x 32, is nearly all of it.
SETTINGS = (
    *("model.n_layer=2", "model.n_head=2", "model.n_embd=32", "model.mlp_hidden=88", "model.block_size=64"),
    *("data.micro_batch=8", "data.total_batch_tokens=512", "data.validation_tokens=20000"),
    *("run.precision=float32", "run.device=cpu", f"optimizer.max_lr={RATE}", f"optimizer.min_lr={RATE / 10}"),
    *("evaluation.validation_every=0", "evaluation.validation_batch_size=16", "evaluation.hellaswag_every=0"),
    *("evaluation.sample_count=0", "checkpoint.every=0"),
)


@dataclass(frozen=True)
class Size:
    """The size of the experiment."""

    nulls: int
    seeds: int
    steps: int
    validation_batches: int


FULL, QUICK = Size(20, 3, 48, 4), Size(1, 2, 3, 1)


class InThisProcess(Workers):
    """Runs the commands one after another in this process, which loads PyTorch once."""

    def call(self, words: Sequence[str], name: str, place: str) -> tuple[int, str]:
        with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(output):
            code = regpt(list(words))
        return code, output.getvalue()

    def run_all(
        self,
        tasks: Mapping[str, Callable[[Workers, str], Result]],
        finished: Callable[[str, Result], None],
        check_stop: Callable[[], None],
    ) -> dict[str, Result]:
        results = {}
        for name, task in tasks.items():
            results[name] = task(self, "")
            finished(name, results[name])
        return results


@dataclass(frozen=True)
class Calls:
    """What an ablation called."""

    nulls: int
    called: int  # nulls at the 5 % level
    called_by_holm: int  # nulls at the 5 % level after Holm's correction over all arms
    found: frozenset[str]  # planted changes at the 5 % level, with the right sign
    found_by_holm: frozenset[str]  # after the correction over all arms


def design_of(size: Size, source: str, folder: Path, settings: tuple[str, ...] = ()) -> Design:
    """Return the design: the base, with settings of the user's, the bad change, Muon and nulls."""
    data = (f"data.source={source}", f"data.path={folder / 'data'}")
    steps = (f"run.max_steps={size.steps}", f"optimizer.warmup_steps={size.steps // 10}")
    validation = f"evaluation.validation_batches={size.validation_batches}"
    arms = (Arm(BASE), BAD, MUON, *null_arms(size.nulls))
    return Design(
        "demo-modern", (*SETTINGS, *data, *steps, validation, *settings), arms, tuple(range(1, size.seeds + 1)), None, 1
    )


def run(folder: Path, design: Design) -> Results:
    """Train what is missing, and write the report of the ablation too."""
    open_design(folder, design)
    trials, done = design.seed_trials(), []

    def finished(trial: object, _: object) -> None:
        done.append(trial)
        print(f"\r{len(done)} of {len(trials)} runs", end="", file=sys.stderr, flush=True)

    runs = run_trials(folder, design, trials, {}, InThisProcess([""]), finished, lambda: None)
    print(file=sys.stderr)
    results = results_of(design, runs, {}, SMALLEST)
    write_page(folder, results)
    return results


def calls_of(results: Results) -> Calls:
    """Count the calls of nulls, and say which planted changes were found."""
    effects = {effect.arm: effect for effect in results.effects}
    nulls = [effects[arm.name] for arm in results.design.arms if arm.is_null]
    right = [effect for effect in planted(results) if (effect.mean > 0) == (effect.arm == BAD.name)]
    return Calls(
        nulls=len(nulls),
        called=sum(effect.p_value < LEVEL for effect in nulls),
        called_by_holm=sum(effect.is_significant for effect in nulls),
        found=frozenset(effect.arm for effect in right if effect.p_value < LEVEL),
        found_by_holm=frozenset(effect.arm for effect in right if effect.is_significant),
    )


def planted(results: Results) -> list[Effect]:
    return [effect for effect in results.effects if effect.arm in (BAD.name, MUON.name)]


def lines(results: Results, calls: Calls) -> Iterator[str]:
    """Yield the result as text."""
    yield f"nulls called at 5 %: {calls.called} of {calls.nulls}; after Holm's correction: {calls.called_by_holm}"
    for effect in planted(results):
        found, by_holm = ("found" if effect.arm in names else "missed" for names in (calls.found, calls.found_by_holm))
        yield (
            f"{effect.arm}: {effect.mean:+.4f} ± {effect.half_width:.4f} nats; {found} at 5 % (p {effect.p_value:.2g}),"
            f" {by_holm} after Holm's correction (p {effect.adjusted_p_value:.2g})"
        )


def main(words: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.planted_nulls",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--into", type=Path, default=Path("planted-nulls"), help="folder of data and runs")
    options.add_argument("--source", default="stdlib", help="text, as data.source (default: the embedded corpus)")
    options.add_argument("--nulls", type=int, help=f"A/A arms (default: {FULL.nulls})")
    options.add_argument("--seeds", type=int, help=f"runs of each arm (default: {FULL.seeds})")
    options.add_argument("--steps", type=int, help=f"steps of each run (default: {FULL.steps})")
    options.add_argument("--set", nargs="+", default=[], metavar="SETTING", help="settings for all arms")
    options.add_argument("--quick", action="store_true", help="the smallest form, which decides nothing")
    given = options.parse_args(words)
    try:
        wanted = {name: value for name in ("nulls", "seeds", "steps") if (value := getattr(given, name)) is not None}
        size = replace(QUICK if given.quick else FULL, **wanted)
        results = run(given.into, design_of(size, given.source, given.into, tuple(given.set)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    print("\n".join(lines(results, calls_of(results))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
