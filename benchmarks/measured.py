"""Keep the results of ablations in measured.json; write the lines and tables of docs/improvements.md from it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from regpt.ablation.design import BASE, RUNS_DIR, Design, Trial, read_design
from regpt.ablation.effects import Effect, Results, Verdict, results_of
from regpt.ablation.paired import p_value
from regpt.ablation.trials import best_values
from regpt.ablation.wording import VERDICTS
from regpt.base.format import NO_VALUE, percent
from regpt.tracking.run import Run, open_run

HEADER = (
    "arm", "final loss", "difference (95 % interval)", "p (Holm)", "detectable", "tokens saved", "rates ×", "verdict",
)  # fmt: skip
FILE = Path(__file__).parent / "measured.json"


@dataclass(frozen=True)
class MeasuredEffect:
    """An arm against the base; losses in nats per token."""

    arm: str
    loss: float
    difference: float
    half_width: float  # of the 95 % interval
    p_value: float  # corrected over the arms of the experiment
    smallest_detectable: float
    token_share: float | None  # of the base's tokens to reach its final loss; None: not reached
    value: str  # the tuned factor of the learning rates
    verdict: str  # a name of `Verdict`


@dataclass(frozen=True)
class Measured:
    """The result of one experiment."""

    experiment: str
    size: str
    corpus: str
    parameters: int
    tokens: int  # of a run of the base
    seeds: int
    base_loss: float
    base_value: str
    effects: tuple[MeasuredEffect, ...]

    @property
    def key(self) -> str:
        return f"{self.experiment}-{self.size}-{self.corpus}"

    @property
    def setting(self) -> str:
        return f"{self.corpus}, {self.parameters / 1e6:.1f}M parameters, {self.tokens / 1e6:.2f}M tokens"


def measured_in(folder: Path, experiment: str, size: str, corpus: str, smallest: float) -> Measured:
    """Read the finished ablation in a folder.

    Raises UserError for a folder without an ablation, and for a missing run.
    """
    design = read_design(folder)
    results = read_results(folder, design, smallest)
    base = design.recipe_of(Trial(BASE, design.seeds[0]), results.best.get(BASE, ""))
    averaging = average_effect([run_of(folder, Trial(BASE, seed)) for seed in design.seeds])
    effects = tuple(measured_effect(effect, smallest) for effect in [*results.effects, *averaging])
    return Measured(
        experiment,
        size,
        corpus,
        base.model.parameters,
        base.total_tokens,
        len(design.seeds),
        fmean(results.base_losses),
        results.best.get(BASE, ""),
        effects,
    )


def measured_effect(effect: Effect, smallest: float) -> MeasuredEffect:
    return MeasuredEffect(
        effect.arm,
        fmean(effect.losses),
        effect.mean,
        effect.half_width,
        effect.adjusted_p_value,
        effect.smallest_detectable,
        effect.token_share,
        effect.value,
        effect.verdict(smallest).name,
    )


def read_results(folder: Path, design: Design, smallest: float) -> Results:
    best = best_values({trial: run_of(folder, trial) for trial in design.tuning_trials()})
    return results_of(design, {trial: run_of(folder, trial) for trial in design.seed_trials()}, best, smallest)


def run_of(folder: Path, trial: Trial) -> Run:
    return open_run(folder / RUNS_DIR / trial.run_name)


def average_effect(runs: Sequence[Run]) -> list[Effect]:
    """Return the effect of weight averaging: the averaged against the last weights of the base's runs; none without it.

    Its p-value is not corrected, because no other change is compared with these last weights.
    """
    last = [run.history.validations[-1] for run in runs]
    losses = tuple(record.averaged_loss for record in last if record.averaged_loss is not None)
    if len(losses) < len(last):
        return []
    differences = tuple(loss - record.loss for loss, record in zip(losses, last, strict=True))
    p = p_value(differences)
    return [Effect("average", losses, differences, p_value=p, adjusted_p_value=p)]


def record(measured: Measured, file: Path = FILE) -> None:
    """Write a result to the file; it replaces an earlier one of the same experiment, size and corpus."""
    kept = [other for other in recorded(file) if other.key != measured.key]
    rows = [asdict(one) for one in sorted([*kept, measured], key=lambda one: one.key)]
    file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def recorded(file: Path = FILE) -> list[Measured]:
    """Return all results, in the order of their keys."""
    if not file.exists():
        return []
    rows = json.loads(file.read_text(encoding="utf-8"))
    return [Measured(**{**row, "effects": tuple(MeasuredEffect(**one) for one in row["effects"])}) for row in rows]


def lines_of(arm: str, file: Path = FILE) -> Iterator[str]:
    """Yield a line for each measurement of a change: its setting, the difference and the verdict."""
    if not any(effect.arm == arm for measured in recorded(file) for effect in measured.effects):
        yield "- Measured: not yet."
    for measured in recorded(file):
        for effect in measured.effects:
            if effect.arm == arm:
                yield (
                    f"- Measured ({measured.setting}, {measured.seeds} seeds): {difference(effect)} nats;"
                    f" **{VERDICTS[Verdict[effect.verdict]]}**."
                )


def difference(effect: MeasuredEffect) -> str:
    low, high = effect.difference - effect.half_width, effect.difference + effect.half_width
    return f"{effect.difference:+.4f} ({low:+.4f} to {high:+.4f})"


def table(experiment: str, file: Path = FILE) -> Iterator[str]:
    """Yield the Markdown rows of all results of an experiment."""
    if not any(measured.experiment == experiment for measured in recorded(file)):
        yield "Not measured yet."
    for measured in recorded(file):
        if measured.experiment == experiment:
            yield f"**{measured.setting}**, {measured.seeds} seeds:"
            yield ""
            yield f"| {' | '.join(HEADER)} |"
            yield "|---" * len(HEADER) + "|"
            nothing = " | ".join([NO_VALUE] * 4)
            yield f"| base | {measured.base_loss:.4f} | {nothing} | {measured.base_value} | {NO_VALUE} |"
            for effect in sorted(measured.effects, key=lambda one: one.difference):
                saved = "none" if effect.token_share is None else percent(1 - effect.token_share)
                yield (
                    f"| {effect.arm} | {effect.loss:.4f} | {difference(effect)} | {effect.p_value:.2g} |"
                    f" {effect.smallest_detectable:.4f} | {saved} | {effect.value} |"
                    f" {VERDICTS[Verdict[effect.verdict]]} |"
                )
            yield ""
