"""The tables of a comparison as text, for Markdown and for the terminal."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table as RichTable

from regpt.base.format import NO_VALUE, duration, percent, scientific, with_error
from regpt.comparison.final_metrics import Cell, MetricRow, Missing, ModelState, Quantity, Value, final_metrics
from regpt.fairness.learning_curves import CurveValue, LearningCurve, Row, first_time_below
from regpt.fairness.models import ComparedModel, metric_text, task_title
from regpt.recipe.differences import run_settings
from regpt.rendering.markdown import escaped


@dataclass(frozen=True)
class Table:
    """Plain text in rows of equal length; each renderer escapes it."""

    header: list[str]
    rows: list[list[str]]


def markdown_table(table: Table) -> Iterator[str]:
    """Write the lines of a Markdown table; nothing for a table without rows."""
    if table.rows:
        lines = [
            f"| {' | '.join(map(escaped, cells))} |".replace("|  |", "| |") for cells in [table.header, *table.rows]
        ]
        yield from (lines[0], "|---" * len(table.header) + "|", *lines[1:])


def rich_table(table: Table) -> RichTable:
    drawn = RichTable(*map(escape, table.header), box=None, pad_edge=False)
    for cells in table.rows:
        drawn.add_row(*map(escape, cells))
    return drawn


QUANTITY_NAMES = {
    Quantity.STATE: "State",
    Quantity.PARAMETERS: "Parameters",
    Quantity.TOKENS: "Training tokens",
    Quantity.LAST_LOSS: "Validation loss, last",
    Quantity.AVERAGED_LOSS: "Validation loss, averaged weights",
    Quantity.BEST_LOSS: "Validation loss, best",
    Quantity.BITS_PER_BYTE: "Bits per byte",
    Quantity.PUBLISHED_HELLASWAG: "HellaSwag accuracy, published",
    Quantity.TRAINING_TIME: "Training time",
    Quantity.SPEED: "Tokens/s, median step",
    Quantity.FLOPS: "Training FLOPs",
    Quantity.PEAK_SHARE: "Share of peak (MFU)",
}
NUMBER_TEXT: dict[Quantity, Callable[[float], str]] = {
    Quantity.PARAMETERS: lambda value: f"{value:,.0f}",
    Quantity.TOKENS: lambda value: f"{value:,.0f}",
    Quantity.LAST_LOSS: lambda value: f"{value:.4f}",
    Quantity.AVERAGED_LOSS: lambda value: f"{value:.4f}",
    Quantity.BEST_LOSS: lambda value: f"{value:.4f}",
    Quantity.BITS_PER_BYTE: lambda value: f"{value:.4f}",
    Quantity.PUBLISHED_HELLASWAG: str,
    Quantity.ACCURACY: lambda value: f"{value:.4f}",
    Quantity.AVERAGED_ACCURACY: lambda value: f"{value:.4f}",
    Quantity.TRAINING_TIME: duration,
    Quantity.SPEED: lambda value: f"{value:,.0f}",
    Quantity.FLOPS: lambda value: scientific(value, 3),
    Quantity.PEAK_SHARE: percent,
}
MISSING_TEXT = {
    Missing.NOT_APPLICABLE: NO_VALUE,
    Missing.NOT_MEASURED: "not measured",
    Missing.NOT_PUBLISHED: "not published",
    Missing.UNKNOWN: "unknown",
}


def final_metrics_table(models: Sequence[ComparedModel]) -> Table:
    rows = final_metrics(models)
    return Table(
        ["", *(model.name for model in models)],
        [[row_name(row), *(cell_text(row.quantity, cell) for cell in row.cells)] for row in rows],
    )


def row_name(row: MetricRow) -> str:
    if row.quantity is Quantity.ACCURACY:
        return f"{task_title(row.task)}, by {metric_text(row.metric)}"
    if row.quantity is Quantity.AVERAGED_ACCURACY:
        return f"{task_title(row.task)}, averaged weights, by {metric_text(row.metric)}"
    return QUANTITY_NAMES[row.quantity]


def cell_text(quantity: Quantity, cell: Cell) -> str:
    match cell:
        case Missing():
            return MISSING_TEXT[cell]
        case ModelState():
            return state_text(cell)
        case Value():
            return value_text(quantity, cell)


def state_text(cell: ModelState) -> str:
    if not cell.max_steps:
        return "published" if cell.is_published else "evaluated"
    return f"{cell.state or 'checkpoint'}, step {cell.step:,} of {cell.max_steps:,}"


def value_text(quantity: Quantity, cell: Value) -> str:
    if cell.is_published:
        return f"{cell.value} (published)"
    number = NUMBER_TEXT[quantity](cell.value) + (f" ± {cell.standard_error:.4f}" if cell.standard_error else "")
    notes = [cell.items, f"step {cell.step:,}" if cell.step is not None else ""]
    details = ", ".join(filter(None, notes))
    return f"{number} ({details})" if details else number


def equal_tokens_table(curves: Sequence[LearningCurve], rows: Sequence[Row]) -> Table:
    return curve_table("Training tokens", curves, rows, "{:,.0f}".format)


def equal_time_table(curves: Sequence[LearningCurve], rows: Sequence[Row]) -> Table:
    return curve_table("Training time", curves, rows, duration)


def curve_table(name: str, curves: Sequence[LearningCurve], rows: Sequence[Row], text: Callable[[float], str]) -> Table:
    return Table(
        [name, *(curve.name for curve in curves)], [[text(x), *map(curve_value_text, values)] for x, values in rows]
    )


def curve_value_text(value: CurveValue | None) -> str:
    if value is None:
        return NO_VALUE
    return with_error(value.loss, value.standard_error) if value.is_measured else f"≈ {value.loss:.4f}"


def first_reached_table(curves: Sequence[LearningCurve], with_time: bool) -> Table:
    """Return when each curve first reached the last loss of each curve."""
    rows = []
    for curve in curves:
        loss = curve.evaluations[-1].loss
        rows.append(
            [f"{loss:.4f} (last of {curve.name})", *(crossing_text(other, loss, with_time) for other in curves)]
        )
    return Table(["Loss", *(curve.name for curve in curves)], rows)


def crossing_text(curve: LearningCurve, loss: float, with_time: bool) -> str:
    found = first_time_below(curve, loss)
    if found is None:
        return f"not reached (lowest {min(point.loss for point in curve.evaluations):.4f})"
    about = "" if found.is_measured else "≈ "
    time = f", {about}{duration(found.seconds)}" if with_time else ""
    return f"{about}{found.tokens:,.0f} tokens{time}"


def differences_table(models: Sequence[ComparedModel]) -> Table:
    """Return the settings, machines and versions that differ among the models whose recipe is known."""
    known = [model for model in models if model.recipe is not None]
    settings = [run_settings(model.recipe) for model in known if model.recipe is not None]
    environments = [environment_texts(model) for model in known]
    names = dict.fromkeys(name for own in settings for name in own)
    rows = [[name, *(setting_text(own[name], settings[0][name]) for own in settings)] for name in names]
    facts = dict.fromkeys(name for own in environments for name in own)
    rows += [[name, *(own.get(name, NO_VALUE) for own in environments)] for name in facts]
    different = [cells for cells in rows if len(set(cells[1:])) > 1]
    return Table(["Setting", *(model.name for model in known)], different)


def setting_text(value: Any, first: Any) -> str:
    """Write a value, and its ratio to the first model's if both are numbers."""
    are_numbers = all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in (value, first))
    return str(value) + (f" (× {value / first:.3g})" if are_numbers and first and value and value != first else "")


def environment_texts(model: ComparedModel) -> dict[str, str]:
    """Describe the environment of a run; empty for other models."""
    if model.run is None:
        return {}
    environment = model.run.environment
    return {
        "Data": f"{environment.data.source.description}, digest {environment.data.digest[:12]}",
        "Device": model.device,
        "Precision": environment.device.precision,
        "torch.compile": "on" if environment.device.compiled else "off",
        "Ranks": ", then ".join(map(str, dict.fromkeys(model.run.ranks or [environment.ranks]))),
        "System": environment.system,
        "Code": f"regpt {environment.code_version}",
        **{name: str(version) for name, version in asdict(environment.packages).items()},
    }
