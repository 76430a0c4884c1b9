"""A run's record, as one would write it by hand, from the run directory alone: report.md and its pictures."""

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from regpt.base.files import write_text
from regpt.base.recipe import Recipe
from regpt.results.differences import differences_from_gpt2, rows_of_differences
from regpt.results.plots import Line, draw_course, draw_hellaswag, draw_losses, tokens_in_short
from regpt.results.references import CHANCE, FINEWEB_EDU, GPT2, GPT3, REFERENCES, RERUNS
from regpt.results.runs import Run, headline
from regpt.results.scores import (
    NOT_MEASURED,
    Other,
    cell,
    columns,
    comparable,
    kind_of_data,
    notes,
    published_row,
    table_of,
)

LINES_OF_HELLASWAG = [
    Line("chance", CHANCE),
    *(Line(f"{one.name}, all items", one.hellaswag) for one in (GPT2, RERUNS[-2])),
    Line(f"{GPT3.name}, all items, judged {GPT3.judged}", GPT3.hellaswag),
]


def write_report(run: Run, others: Sequence[Other]) -> Path:
    """Write report.md and its pictures into the run's folder; returns the report's path. Works on a live run too."""
    images = run.path / "img"
    runs = [run, *(other.run for other in others if other.run)]
    for ending in ("png", "svg"):
        draw_losses(runs, images / f"train-val_loss.{ending}", lines_of_losses(run))
        draw_course(run, images / f"course.{ending}")
        if run.hellaswag:
            of = run.hellaswag[-1].items
            draw_hellaswag(runs, images / f"hellaswag.{ending}", LINES_OF_HELLASWAG, of)
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
        "hellaswag_interval": hellaswag_interval(run),
        "published": [published_row(run, one) for one in REFERENCES],
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
    if run.hellaswag:
        share, error = headline(run.hellaswag[-1])
        words += f" Of HellaSwag ({run.hellaswag[-1].items}) it gets {share:.3f} ± {error:.3f} right."
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


def hellaswag_interval(run: Run) -> str:
    asked = run.recipe.evaluation
    if not asked.hellaswag_every:
        return "off"
    every = f"every {asked.hellaswag_every:,} steps"
    if not run.hellaswag:
        return f"asked for {every}; {NOT_MEASURED}" + (f": {run.hellaswag_unmeasured}" * bool(run.hellaswag_unmeasured))
    return f"{every}, {run.hellaswag[-1].items}"


def lines_of_losses(run: Run) -> list[Line]:
    """Published losses that were measured on the same kind of data."""
    compared = [one for one in REFERENCES if one.data == kind_of_data(run) and one.validation_loss]
    if kind_of_data(run) == FINEWEB_EDU:
        compared = [GPT2, RERUNS[0], RERUNS[3]]
    return [Line(one.name, one.validation_loss) for one in compared if one.validation_loss]


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


def fenced(text: str) -> str:
    """A sample as a block that nothing inside it can end."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"
