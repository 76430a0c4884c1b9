"""Measure the improvements of docs/improvements.md. Each experiment is one `regpt ablate`, designed here.

    python -m benchmarks.improvements first           Muon, and all improvements together, against the modern miniature
    python -m benchmarks.improvements switches        each switch alone, against the modern miniature
    python -m benchmarks.improvements muon_settings   settings used with Muon, against the modern miniature with Muon
    python -m benchmarks.improvements third           demo-next on a third and on a quarter of demo-modern's tokens
    python -m benchmarks.improvements third --size 18M --text FOLDER

Without --text the corpus is the embedded one, Python's source code. For every arm the same factors of the learning
rates are tried. Runs are kept in --into, so the same command continues an experiment that was stopped. --command prints
the `regpt ablate` command and exits. The result is added to benchmarks/measured.json, from which `make docs-generate`
writes the figures of docs/improvements.md.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measured import measured_in, record
from regpt.base.errors import DONE
from regpt.cli.ablate import SMALLEST
from regpt.cli.main import main as regpt
from regpt.recipe.differences import differences
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import load_recipe

BASE, NEXT = "demo-modern", "demo-next"
SIZES = {
    "3M": "model.n_head=2 model.n_embd=64 model.mlp_hidden=172",
    "7M": "",
    "18M": "model.n_layer=6 model.n_embd=256 model.mlp_hidden=688",
}
COMMON = (
    "run.precision=bfloat16 data.validation_tokens=40000 data.shard_tokens=1000000 evaluation.validation_batches=8"
    " evaluation.hellaswag_every=0 evaluation.sample_count=0 optimizer.max_lr=3e-3 optimizer.min_lr=3e-4"
)
CONTEXT = 256  # tokens, of the miniatures
RATES = "optimizer.embedding_lr=0.02 optimizer.vector_lr=0.02 optimizer.weight_decay=0"
MUON = f"optimizer.kind=muon {RATES} optimizer.muon_lr=0.04 optimizer.muon_momentum_warmup_steps=50"


@dataclass(frozen=True)
class Length:
    """How long the runs of an experiment are."""

    steps: int
    batch_tokens: int
    validations: int = 12

    @property
    def settings(self) -> str:
        return (
            f"run.max_steps={self.steps} data.total_batch_tokens={self.batch_tokens}"
            f" data.micro_batch={self.batch_tokens // CONTEXT // 2} optimizer.warmup_steps={self.steps // 10}"
            f" checkpoint.every={self.steps}"
            f" evaluation.validation_every={max(1, self.steps // self.validations)}"
        )


def switches(base: Recipe) -> dict[str, str]:
    """Return the settings of each switch alone, and of a planted bad change, `rate_x10`.

    relu2 and experts have the base's number of (active) parameters.
    """
    model, steps = base.model, base.run.max_steps
    cooldown = f"optimizer.schedule=trapezoid optimizer.cooldown_steps={steps * 6 // 10}"
    batch = base.data.total_batch_tokens
    return {
        "qk_norm": "model.qk_norm=true",
        "relu2": f"model.activation=relu2 model.mlp_hidden={model.mlp_hidden * 3 // 2}",
        "zero_init": "model.zero_init=true",
        "wide_heads": f"model.n_head={model.n_head // 2} model.head_dim={model.n_embd // model.n_head * 2}",
        "untied_head": "model.tied_head=false model.head_init=zero",
        "embedding_norm": "model.embedding_norm=true model.embedding_init_std=1.0 model.tied_head=false"
        " model.head_init=zero",
        "value_residual": "model.value_residual=true",
        "residual_scalars": "model.residual_scalars=true",
        "value_embeddings": "model.value_embeddings=true",
        "logit_softcap": "model.logit_softcap=15",
        "z_loss": "model.z_loss=1e-4",
        "document_mask": "model.document_mask=true",
        "dropout": "model.dropout=0.1",
        "experts": f"model.experts=4 model.experts_per_token=2 model.mlp_hidden={model.mlp_hidden // 2}",
        "group_rates": RATES,
        "muon": MUON,
        "adam_eps": "optimizer.eps=1e-5",
        "adam_beta2": "optimizer.beta2=0.99",
        "short_warmup": "optimizer.warmup_steps=2",
        "cautious_decay": "optimizer.cautious_weight_decay=true",
        "decay_follows_rate": "optimizer.weight_decay_schedule=lr",
        "trapezoid": cooldown,
        "trapezoid_to_0": f"{cooldown} optimizer.min_lr=0",
        "one_minus_sqrt": f"{cooldown} optimizer.cooldown_shape=1-sqrt",
        "rate_x10": f"optimizer.max_lr={base.optimizer.max_lr * 10} optimizer.warmup_steps=0",
        "batch_ramp": f"'data.batch_ramp={batch // 2} until {batch * (steps // 4)}' run.max_steps={steps + steps // 4}",
    }


def muon_settings(base: Recipe) -> dict[str, str]:
    """Return the settings used with Muon, each alone."""
    steps = base.run.max_steps
    cooldown = f"optimizer.schedule=trapezoid optimizer.cooldown_steps={steps * 8 // 10}"
    return {
        "constant_momentum": "optimizer.muon_momentum_warmup_steps=0",
        "normuon": "optimizer.normuon=true",
        "iterations_12": "optimizer.newton_schulz_steps=12",
        "muon_decay": "optimizer.muon_weight_decay=0.05",
        "muon_cautious_decay": "optimizer.muon_weight_decay=0.05 optimizer.cautious_weight_decay=true",
        "muon_trapezoid": cooldown,
        "adam_cooldown": f"{cooldown} optimizer.adam_cooldown_steps={steps * 4 // 10}",
    }


def first(base: Recipe) -> dict[str, str]:
    """Return Muon, and the stack of the full-size recipe `gpt2-next` with rates for a small batch."""
    hidden, steps = base.model.mlp_hidden * 3 // 2 // 8 * 8, base.run.max_steps
    return {
        "muon": MUON,
        "stack": "optimizer.kind=muon optimizer.weight_decay=0 optimizer.embedding_lr=0.2 optimizer.head_lr=0.006"
        " optimizer.vector_lr=0.04 optimizer.muon_lr=0.04 optimizer.muon_momentum_warmup_steps=50"
        f" optimizer.schedule=trapezoid optimizer.cooldown_steps={steps * 6 // 10}"
        " optimizer.cautious_weight_decay=true model.tied_head=false model.head_init=zero model.embedding_norm=true"
        f" model.embedding_init_std=1.0 model.qk_norm=true model.activation=relu2 model.mlp_hidden={hidden}"
        " model.zero_init=true model.value_residual=true model.residual_scalars=true model.logit_softcap=15",
    }


def third(base: Recipe) -> dict[str, str]:
    """Return the settings that turn the base into `demo-next`, with a third and with a quarter of its steps."""
    settings = " ".join(next_settings(base))
    return {
        name: f"{next_length(base, parts).settings} {settings}" for name, parts in (("next", 3), ("next_quarter", 4))
    }


def next_length(base: Recipe, parts: int) -> Length:
    return Length(base.run.max_steps // parts, base.data.total_batch_tokens, validations=6)


def next_settings(base: Recipe) -> list[str]:
    """Return where [model] and [optimizer] of `demo-next` differ from `demo-modern`, for a base of any size."""
    changed = {name: new for name, new, _ in differences(load_recipe(NEXT), load_recipe(BASE))}
    changed["model.mlp_hidden"] = base.model.mlp_hidden * 3 // 2 // 8 * 8
    return [f"{name}={value}" for name, value in changed.items() if name.startswith(("model.", "optimizer."))]


@dataclass(frozen=True)
class Experiment:
    """An ablation: changes as a function of the base, length of the base's runs, settings of every arm, A/A arms."""

    changes: Callable[[Recipe], dict[str, str]]
    size: str
    length: Length
    settings: str = ""
    aa_arms: int = 0


EXPERIMENTS = {
    "first": Experiment(first, "7M", Length(122, 4_096)),
    "switches": Experiment(switches, "3M", Length(84, 2_048, validations=4), aa_arms=1),
    "muon_settings": Experiment(
        muon_settings, "3M", Length(84, 2_048, validations=4), f"{MUON} optimizer.average_steps=10"
    ),
    "third": Experiment(third, "7M", Length(498, 2_048, validations=6)),
}


def command(
    experiment: Experiment, size: str, source: str, into: Path, jobs: int | None, more: Sequence[str] = ()
) -> list[str]:
    """Return the arguments of `regpt ablate` for an experiment; `more` are settings of every run."""
    settings = [*COMMON.split(), *SIZES[size].split(), *experiment.length.settings.split()]
    settings += [*experiment.settings.split(), *more, f"data.source={source}", f"data.path={into / 'data'}"]
    changes = experiment.changes(load_recipe(BASE, settings))
    words = ["ablate", BASE, *settings, "--seeds", "3", "--tune", "rates=0.5,1,2", "--into", str(into)]
    words += [word for name, change in changes.items() for word in ("--change", f"{name}: {change}")]
    words += ["--aa-arms", str(experiment.aa_arms)] if experiment.aa_arms else []
    return [*words, *(["--jobs", str(jobs)] if jobs else [])]


def main(arguments: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.improvements",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("experiment", choices=EXPERIMENTS)
    options.add_argument("--size", choices=SIZES, help="parameters of the base (default: depends on the experiment)")
    options.add_argument(
        "--text", default="stdlib", help="file or folder of text; its name names the corpus (default: the embedded one)"
    )
    options.add_argument("--into", type=Path, help="folder for data and runs (default: improvements/EXPERIMENT-SIZE)")
    options.add_argument("--jobs", type=int, help="runs at a time (default: one per core)")
    options.add_argument("--set", nargs="+", default=[], metavar="SETTING", help="settings of every run")
    options.add_argument("--command", action="store_true", help="print the command and exit")
    given = options.parse_args(arguments)
    experiment = EXPERIMENTS[given.experiment]
    size = given.size or experiment.size
    into = given.into or Path("improvements") / f"{given.experiment}-{size}"
    words = command(experiment, size, given.text, into, given.jobs, given.set)
    if given.command:
        print(shlex.join(["regpt", *words]))
        return DONE
    code = regpt(words)
    if code == DONE:
        corpus = "code" if given.text == "stdlib" else Path(given.text).stem
        record(measured_in(into, given.experiment, size, corpus, SMALLEST))
    return code


if __name__ == "__main__":
    sys.exit(main())
