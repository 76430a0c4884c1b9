"""A run's record, as one would write it by hand, from the run directory alone: report.md and its pictures."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from regpt.base.files import write_text
from regpt.base.recipe import Recipe
from regpt.base.settings import load_recipe
from regpt.results.differences import differences_from_gpt2, rows_of_differences
from regpt.results.plots import draw_course, draw_losses, tokens_in_short
from regpt.results.references import FINEWEB_EDU, GPT2
from regpt.results.runs import Run, find_run, open_run

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Column:
    """One model in the table of final metrics."""

    name: str
    last: str
    best: str
    hellaswag: str
    tokens: str


@dataclass(frozen=True)
class Other:
    """What a run is held against: another run, or a recipe with the figures that its record claims."""

    name: str
    recipe: Recipe
    run: Run | None


def open_other(where: str, root: Path) -> Other:
    """A run by id or path, or a recipe by its .toml file."""
    if where.endswith(".toml"):
        recipe = load_recipe(where)
        return Other(f"{recipe.name} (recorded)", recipe, None)
    run = open_run(find_run(where, root))
    return Other(run.id, run.recipe, run)


def write_report(run: Run, others: Sequence[Other]) -> Path:
    """Write report.md and its pictures into the run's folder; returns the report's path. Works on a live run too."""
    images = run.path / "img"
    reference = (GPT2.name, GPT2.validation_loss) if is_fineweb_edu(run) and GPT2.validation_loss else None
    for ending in ("png", "svg"):
        draw_losses([run, *(o.run for o in others if o.run)], images / f"train-val_loss.{ending}", reference)
        draw_course(run, images / f"course.{ending}")
    template = Environment(
        loader=PackageLoader("regpt.results", ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    ).get_template("report.md.j2")
    path = run.path / "report.md"
    write_text(path, template.render(**contents(run, others)))
    return path


def contents(run: Run, others: Sequence[Other]) -> dict[str, Any]:
    """Everything that the template asks for."""
    recipe = run.recipe
    events = run.history.events
    started = datetime.fromtimestamp(events[0].at, UTC) if events else None
    return {
        "run": run,
        "recipe": recipe,
        "model": recipe.model,
        "data": recipe.data,
        "optimizer": recipe.optimizer,
        "evaluation": recipe.evaluation,
        "environment": run.environment,
        "n": lambda value: f"{value:,}",
        "short": tokens_in_short,
        "percent": lambda value: f"{100 * value:.3g} %",
        "duration": lambda seconds: str(timedelta(seconds=round(seconds))),
        "every": lambda steps, otherwise: f"every {steps:,} steps" if steps else otherwise,
        "date": f"{started:%Y-%m-%d %H:%M} UTC" if started else "not started",
        "state": run.history.status,
        "summary": summary(run, others),
        "architecture": architecture(recipe),
        "validation_cut": validation_cut(run),
        "hellaswag_interval": hellaswag_interval(recipe),
        "order": "all windows of all shards shuffled, anew each epoch"
        if recipe.data.order == "shuffled"
        else "sequential, as the windows stand in the files",
        "ranks": ranks(run),
        "memory": memory(run),
        "cost": cost(run),
        "columns": columns(run, others),
        "table_of": table_of,
        "fenced": fenced,
        "cell": cell,
        "notes": notes(run, others),
        "samples": run.history.samples[-1] if run.history.samples else None,
        "from_gpt2": differences_from_gpt2(run),
        "others": [{"name": other.name, "differences": rows_of_differences(recipe, other.recipe)} for other in others],
        "command": shlex.join(run.environment["command"]),
        "attempts": run.history.attempts,
        "skipped": [f"step {record.step:,}: {record.reason}" for record in run.history.skipped],
        "attempt_lines": [
            f"{datetime.fromtimestamp(event.at, UTC):%Y-%m-%d %H:%M:%S} UTC: {event.event} at step {event.step:,}"
            + (f" on {event.detail['ranks']} ranks" if event.detail.get("ranks", 1) > 1 else "")
            + (f" ({event.detail['signal']})" if "signal" in event.detail else "")
            for event in events
        ],
    }


def summary(run: Run, others: Sequence[Other]) -> str:
    """What was trained, on what, how far, and what came out; claims nothing that the figures do not carry."""
    model, losses = run.recipe.model, run.history.validations
    words = (
        f"A model of {model.parameters:,} parameters ({', '.join(parts_in_short(run.recipe))}) saw {run.tokens:,}"
        f" tokens of {run.environment['data']['source']['description']} on {run.environment['device']['name']},"
        f" {timedelta(seconds=round(run.training_seconds))} in training steps."
    )
    if len(losses) > 1:
        words += f" Its validation loss went from {losses[0].loss:.4f} to {losses[-1].loss:.4f} nats per token."
    for other in others:
        if other.run is None or not losses or other.run.validation_loss is None:
            continue
        if not comparable(run, other.run):
            continue
        apart = losses[-1].loss - other.run.validation_loss
        where = "lower than" if apart < 0 else "higher than"
        words += (
            f" That is {abs(apart):.4f} {where} the last of {other.name}, which saw {other.run.tokens:,} tokens"
            f" of the same data ({run.tokens / max(1, other.run.tokens):.3g} times as many here)."
        )
        at_equal_tokens = [v.loss for v in losses if v.tokens == other.run.tokens]
        if at_equal_tokens and run.tokens != other.run.tokens:
            words += (
                f" After as many tokens it stood at {at_equal_tokens[-1]:.4f} against {other.run.validation_loss:.4f}."
            )
    return words


def parts_in_short(recipe: Recipe) -> list[str]:
    model = recipe.model
    return [
        {"rope": "RoPE", "learned": "learned positions"}[model.positions],
        {"swiglu": "SwiGLU", "gelu": "GELU"}[model.activation],
        {"rmsnorm": "RMSNorm", "layernorm": "LayerNorm"}[model.normalization],
    ]


def architecture(recipe: Recipe) -> list[str]:
    model = recipe.model
    return [
        "**Attention:** causal, scaled_dot_product_attention (Flash Attention where the device has it)",
        "**Activation:** "
        + {
            "swiglu": f"SwiGLU, hidden width {model.mlp_hidden:,}, gated",
            "gelu": f"GELU (tanh form), hidden width {model.mlp_hidden:,}",
        }[model.activation],
        "**Positions:** "
        + {"rope": f"RoPE, base {model.rope_theta:,.0f}, split-half form", "learned": "learned table"}[model.positions],
        "**Normalization:** "
        + {"rmsnorm": "RMSNorm", "layernorm": "LayerNorm"}[model.normalization]
        + f" before attention and MLP and at the end, epsilon {model.norm_eps}",
        "**Biases:** " + ("in linear layers and norms" if model.bias else "none"),
        "**Head:** " + ("tied to the token embedding" if model.tied_head else "a weight of its own"),
    ]


def validation_cut(run: Run) -> str:
    """Says so where the split held fewer windows than the recipe asks for."""
    asked = run.recipe.evaluation.validation_batches * run.recipe.evaluation.validation_batch_size
    read = run.history.validations[-1].windows if run.history.validations else asked
    return f" (the split holds {read:,} windows; all were read)" if read < asked else ""


def hellaswag_interval(recipe: Recipe) -> str:
    asked = recipe.evaluation.hellaswag_every
    return f"asked for every {asked:,} steps; {NOT_MEASURED}, this version cannot" if asked else "off"


def ranks(run: Run) -> str:
    """How many, attempt by attempt where they changed, and how the model lay on them."""
    counts = [count for number, count in enumerate(run.ranks) if number == 0 or count != run.ranks[number - 1]]
    together = run.recipe.run.parallel + (", sums in one order" if run.recipe.run.strict_sum else "")
    return ", then ".join(map(str, counts or [1])) + (f" ({together})" if max(counts, default=1) > 1 else "")


def memory(run: Run) -> str:
    """The most that was written down when the run ended or stopped."""
    most = max((int(event.detail.get("memory_bytes", 0)) for event in run.history.events), default=0)
    of = "of the card at most" if run.environment["device"]["place"].startswith("cuda") else "of the process at the end"
    return f"{most / 2**30:.2f} GiB {of}" if most else NOT_MEASURED


def cost(run: Run) -> str:
    price = run.recipe.run.price_per_hour
    if not price:
        return "no price given (`run.price_per_hour`)"
    hours = run.training_seconds / 3600
    return f"{hours * price:.2f} USD ({hours:.2f} h at {price} USD an hour, training steps only)"


def columns(run: Run, others: Sequence[Other]) -> list[Column]:
    return [
        measured_column(run, f"**{run.id}**"),
        *(measured_column(o.run, o.name) if o.run else recorded_column(o.recipe, o.name) for o in others),
        *([recorded_column(run.recipe, f"{run.recipe.name} (recorded)")] if has_record(run.recipe) else []),
        Column(GPT2.name, f"~{GPT2.validation_loss} (on {GPT2.data})", "—", f"{GPT2.hellaswag} (published)", "—"),
    ]


def table_of(columns: Sequence[Column]) -> list[str]:
    """The columns as rows of a Markdown table."""
    rows = {
        "Metric": [column.name for column in columns],
        "---": ["---"] * len(columns),
        "Validation loss, last": [column.last for column in columns],
        "Validation loss, best": [column.best for column in columns],
        "HellaSwag accuracy": [column.hellaswag for column in columns],
        "Tokens seen": [column.tokens for column in columns],
    }
    return [f"| {' | '.join(map(cell, [name, *cells]))} |" for name, cells in rows.items()]


def cell(text: object) -> str:
    """Text in one cell of a Markdown table."""
    return str(text).replace("|", "\\|").replace("\n", " ")


def fenced(text: str) -> str:
    """A sample as a block that nothing inside it can end."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"


def has_record(recipe: Recipe) -> bool:
    return bool(recipe.published.validation_loss or recipe.published.hellaswag)


def measured_column(run: Run, name: str) -> Column:
    last, best = run.validation_loss, run.best_validation_loss
    return Column(
        name,
        f"{last:.4f}" if last is not None else NOT_MEASURED,
        f"{best:.4f}" if best is not None else NOT_MEASURED,
        NOT_MEASURED,
        f"{run.tokens:,}",
    )


def recorded_column(recipe: Recipe, name: str) -> Column:
    claimed = recipe.published
    return Column(
        name,
        f"{claimed.validation_loss} (recorded)" if claimed.validation_loss else "not recorded",
        "—",
        f"{claimed.hellaswag} (recorded)" if claimed.hellaswag else "not recorded",
        f"{recipe.total_tokens:,} (by the recipe)",
    )


def comparable(run: Run, other: Run) -> bool:
    """Whether two validation losses were taken on the same windows of the same data."""
    if not (run.history.validations and other.history.validations):
        return False
    seen = [
        (r.environment["data"]["digest"], r.recipe.model.block_size, r.history.validations[-1].windows)
        for r in (run, other)
    ]
    return seen[0] == seen[1]


def recorded_where(recipe: Recipe) -> str:
    """Where recorded figures stand, and what they took: 'the record (4 x RTX 3090, 11 h, 7 USD)'."""
    claimed = recipe.published
    took = [
        claimed.hardware,
        f"{claimed.hours:g} h" if claimed.hours else "",
        f"{claimed.cost_usd:g} USD" if claimed.cost_usd >= 0 else "",
    ]
    return f"{claimed.origin or 'its recipe'} ({', '.join(filter(None, took)) or 'nothing said of hardware'})"


def is_fineweb_edu(run: Run) -> bool:
    """By name: of the source, or of the folder that the data set lies in."""
    return "fineweb-edu" in f"{run.environment['data']['source']['description']} {run.recipe.data.path}".lower()


def notes(run: Run, others: Sequence[Other]) -> list[str]:
    """What a reader must know before comparing two numbers of the table."""
    lines = ["Losses are nats per token on fixed windows of the validation split."]
    for other in others:
        if other.run is not None:
            if comparable(run, other.run):
                lines.append(
                    f"{other.name} was validated on the same windows of the same data; the two losses compare."
                )
            else:
                lines.append(
                    f"{other.name} was validated on other windows or other data; the two losses do not compare."
                )
        else:
            lines.append(f"{other.name}: figures from {recorded_where(other.recipe)}, not measured here.")
    if is_fineweb_edu(run):
        lines.append(f"The loss of {GPT2.name} was measured on {FINEWEB_EDU}'s public validation shard.")
    else:
        lines.append(f"The loss of {GPT2.name} was measured on {FINEWEB_EDU}; on this run's data it says nothing.")
    lines.append("HellaSwag: this version of regpt does not measure it yet.")
    return lines
