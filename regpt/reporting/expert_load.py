"""The load of a mixture's experts in a report: the largest and smallest share of the tokens, and its figure."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from regpt.base.format import percent
from regpt.rendering.charts import plot_band, thin_out
from regpt.rendering.figure_style import COLORS, INK, PAPER, Line, draw_lines, finish_axes, save_figure, style_axes
from regpt.rendering.matplotlib_import import Axes, Figure, FuncFormatter, MaxNLocator
from regpt.tracking.journal import ExpertLoadRecord
from regpt.tracking.run import Run

Share = tuple[float, int, int]  # of a layer's load, the layer and the expert, counted from 0


@dataclass(frozen=True)
class LoadRow:
    """A row of the report's table."""

    name: str
    share: str
    layer: int
    expert: int


def shares(record: ExpertLoadRecord) -> list[list[float]]:
    """Return the share of each expert in the load of its layer.  (layers, experts)"""
    return [[load / sum(loads) for load in loads] for loads in record.loads]


def extremes(record: ExpertLoadRecord) -> tuple[Share, Share]:
    """Return the smallest and the largest share of all layers."""
    found = [(share, layer, e) for layer, loads in enumerate(shares(record)) for e, share in enumerate(loads)]
    return min(found), max(found)


def load_rows(run: Run) -> list[LoadRow]:
    """Return the largest and the smallest share in the last record; empty for a dense model."""
    if not run.history.expert_loads:
        return []
    smallest, largest = extremes(run.history.expert_loads[-1])
    return [
        LoadRow(name, percent(share), layer, expert)
        for name, (share, layer, expert) in (("Largest", largest), ("Smallest", smallest))
    ]


def draw_expert_load(run: Run, path: Path) -> None:
    """Draw the largest and smallest share over tokens, and the last load of every expert in every layer."""
    records = run.history.expert_loads
    figure = Figure(figsize=(6.8, 6.0), layout="constrained", facecolor=PAPER)
    above, below = figure.subplots(2, 1, height_ratios=(1, max(0.5, min(1.2, run.recipe.model.n_layer / 10))))
    style_axes(above, "Largest and smallest share of a layer's tokens, over all layers")
    found = [extremes(record) for record in records]
    tokens = [float(record.tokens) for record in records]
    for name, values, color in (
        ("smallest share of an expert", [100 * smallest for (smallest, _, _), _ in found], COLORS[1]),
        ("largest share of an expert", [100 * largest for _, (largest, _, _) in found], COLORS[0]),
    ):
        plot_band(above, *thin_out(tokens, values), [], color, name)
    above.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    above.set_ylim(bottom=0)
    above.set_xlim(left=0)
    draw_last_load(below, shares(records[-1]), f"Load of each expert after step {records[-1].step:,}")
    finish_axes(above)
    draw_lines(above, [Line("% is even", 100 / len(records[-1].loads[0]))])
    save_figure(figure, path)


def draw_last_load(axes: Axes, by_layer: Sequence[Sequence[float]], title: str) -> None:
    """Draw a cell for each layer and expert; its opacity is half for an even share, full for twice that or more."""
    style_axes(axes, title)
    experts = len(by_layer[0])
    for layer, loads in enumerate(by_layer):
        for expert, share in enumerate(loads):
            opacity = min(1.0, share * experts / 2)
            axes.barh(layer, 1, left=expert - 0.5, height=1, color=(COLORS[0], opacity), edgecolor=PAPER, linewidth=0.5)
    axes.grid(False)
    axes.set_xlim(-0.5, experts - 0.5)
    axes.set_ylim(len(by_layer) - 0.5, -0.5)
    axes.set_xlabel("Expert", color=INK, fontsize=9.5)
    axes.set_ylabel("Layer", color=INK, fontsize=9.5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(8, integer=True))
    note = "Faint: few tokens; half: an even share; full color: twice an even share or more."
    finish_axes(axes, note)
