"""Compare the miniatures at equal tokens and in the same order, on four corpora, over seeds; or tune their rates.

Every run of one corpus and seed reads the same windows in the same order, for the same number of steps. Runs are kept
in --into, so a call that was stopped continues where it was.

    python -m benchmarks.miniatures                               the recipes as shipped, seeds 1337 to 1339
    python -m benchmarks.miniatures --rates 1e-3 2e-3 4e-3 --seeds 1337     final losses for each learning rate
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.corpora import CORPORA, source_of
from regpt import open_run
from regpt.ablation.design import ALL_RATES, Tuning, tuned_words
from regpt.recipe.settings import load_recipe
from regpt.stats.paired import students_t_threshold
from regpt.stats.verdicts import loss_verdict
from regpt.tracking.run import Run

RECIPES = ("demo-classic", "demo-modern", "demo-next")
WINDOWS = 128  # of 256 tokens, for each validation


@dataclass(frozen=True)
class Setup:
    """What all runs of one call have in common."""

    into: Path
    steps: int  # 0: those of the classic recipe
    threads: int
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Trial:
    """One run: a recipe on a corpus with a seed, at a learning rate of its own (0: the recipe's)."""

    recipe: str
    corpus: str
    seed: int
    max_lr: float = 0.0

    @property
    def name(self) -> str:
        rate = f"-{self.max_lr:g}" if self.max_lr else ""
        return f"{self.corpus}-{self.recipe}{rate}-{self.seed}"


def run_trial(trial: Trial, setup: Setup) -> Run:
    """Return the finished run of a trial; train or resume it first where needed."""
    runs = setup.into / "runs"
    path = runs / trial.name
    steps = setup.steps or load_recipe(RECIPES[0]).run.max_steps
    settings = [
        *data_settings(trial.corpus, setup),
        f"run.max_steps={steps}",
        f"run.seed={trial.seed}",
        f"run.threads={setup.threads}",
        "data.order=shuffled",
        f"evaluation.validation_every={steps}",
        "evaluation.validation_batch_size=16",
        f"evaluation.validation_batches={WINDOWS // 16}",
        "evaluation.hellaswag_every=0",
        "evaluation.sample_count=0",
        f"checkpoint.every={steps}",
        *rate_settings(trial),
        *setup.settings,
    ]
    if not (path / "journal.jsonl").exists():
        call("train", trial.recipe, "--runs", str(runs), "--name", trial.name, *settings)
    elif open_run(path).history.step < steps:
        call("resume", str(path))
    run = open_run(path)
    print(f"{trial.name}: {run.history.validations[-1].loss:.4f}", flush=True)
    return run


def rate_settings(trial: Trial) -> list[str]:
    """Return the trial's learning rates: those of its recipe, scaled so that max_lr is the trial's."""
    if not trial.max_lr:
        return []
    recipe = load_recipe(trial.recipe)
    factor = repr(trial.max_lr / recipe.optimizer.max_lr)
    return list(tuned_words(recipe, Tuning(ALL_RATES, (factor,)), factor))


def data_settings(corpus: str, setup: Setup) -> list[str]:
    source = source_of(corpus, setup.into / "text")
    path = setup.into / "data" / corpus
    return [f"data.source={source}", f"data.path={path}", f"data.validation_tokens={WINDOWS * 256 + 1}"]


def call(*arguments: str) -> None:
    """Run a regpt command; show its output only if it fails."""
    done = subprocess.run([sys.executable, "-m", "regpt", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"regpt {' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")


def prepare_corpora(corpora: Sequence[str], setup: Setup) -> None:
    for corpus in corpora:
        if not (setup.into / "data" / corpus).exists():
            call("prepare", RECIPES[0], *data_settings(corpus, setup), *data_only(setup.settings))


def data_only(settings: Sequence[str]) -> list[str]:
    return [setting for setting in settings if setting.startswith("data.")]


def grid_table(losses: dict[Trial, float], rates: Sequence[float]) -> Iterator[str]:
    """Return the rows of a table: the mean final loss over seeds, by corpus, recipe and rate."""
    yield "| corpus | recipe | " + " | ".join(f"{rate:g}" for rate in rates) + " |"
    yield "|---|---|" + "---|" * len(rates)
    for corpus in dict.fromkeys(trial.corpus for trial in losses):
        for recipe in RECIPES:
            cells = [
                statistics.fmean(
                    loss
                    for trial, loss in losses.items()
                    if (trial.corpus, trial.recipe, trial.max_lr) == (corpus, recipe, rate)
                )
                for rate in rates
            ]
            best = min(cells)
            yield (
                f"| {corpus} | {recipe} | "
                + " | ".join(f"**{cell:.3f}**" if cell == best else f"{cell:.3f}" for cell in cells)
                + " |"
            )


def comparison_table(runs: dict[Trial, Run], seeds: Sequence[int]) -> Iterator[str]:
    """Return the rows of a table: each recipe minus the one before it, in nats per token, over seeds."""
    yield "| corpus | recipe | loss | before it | difference, 95 % interval over seeds | significantly lower |"
    yield "|---|---|---|---|---|---|"
    recipes = [recipe for recipe in RECIPES if any(trial.recipe == recipe for trial in runs)]
    for corpus in dict.fromkeys(trial.corpus for trial in runs):
        for earlier, later in pairwise(recipes):
            pairs = [(runs[Trial(earlier, corpus, seed)], runs[Trial(later, corpus, seed)]) for seed in seeds]
            verdicts = [loss_verdict(new, old) for old, new in pairs]
            mean, half = interval([verdict.difference or 0.0 for verdict in verdicts])
            old, new = (statistics.fmean(pair[n].history.validations[-1].loss for pair in pairs) for n in (0, 1))
            lower = sum(verdict.outcome == "lower" for verdict in verdicts)
            yield (
                f"| {corpus} | {later} | {new:.4f} | {old:.4f} |"
                f" {mean:+.4f} ({mean - half:+.4f} to {mean + half:+.4f}) | {lower} of {len(seeds)} |"
            )


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half the width of its 95 % interval (Student's t over seeds); infinite for one seed."""
    if len(differences) < 2:
        return differences[0], float("inf")
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return statistics.fmean(differences), students_t_threshold(len(differences) - 1) * error


def main() -> int:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.miniatures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--into", type=Path, default=Path("miniatures"), help="folder of text, data and runs")
    options.add_argument("--corpora", nargs="+", default=list(CORPORA), choices=CORPORA)
    options.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES)
    options.add_argument("--seeds", nargs="+", type=int, default=[1337, 1338, 1339])
    options.add_argument(
        "--rates", nargs="+", type=float, default=[], help="values of max_lr to try; others are scaled alike"
    )
    options.add_argument("--steps", type=int, default=0, help="steps of every run (default: the classic recipe's)")
    options.add_argument("--jobs", type=int, default=2, help="runs at a time, with one thread each (1: all threads)")
    options.add_argument("--set", nargs="+", default=[], metavar="SETTING", help="settings for all runs")
    given = options.parse_args()
    setup = Setup(given.into, given.steps, 1 if given.jobs > 1 else 0, tuple(given.set))
    prepare_corpora(given.corpora, setup)
    trials = [
        Trial(recipe, corpus, seed, rate)
        for seed in given.seeds
        for rate in given.rates or [0.0]
        for corpus in given.corpora
        for recipe in given.recipes
    ]
    with ThreadPoolExecutor(given.jobs) as pool:
        runs = dict(zip(trials, pool.map(lambda trial: run_trial(trial, setup), trials), strict=True))
    if given.rates:
        losses = {trial: run.history.validations[-1].loss for trial, run in runs.items()}
        print("\n".join(grid_table(losses, given.rates)))
    else:
        print("\n".join(comparison_table(runs, given.seeds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
