"""Write results.md from the history of benchmarks, and draw each measure over time."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.history import Entry, Measure, newest
from regpt.rendering.figure_style import COLORS, FAINT, INK, PAPER, save_figure
from regpt.rendering.matplotlib_import import Axes, Figure, Line2D

FILE = Path(__file__).parent / "results.md"
IMAGES = Path(__file__).parent.parent / "docs" / "img"
COLUMNS = 3  # of plots, side by side
TITLE_WIDTH = 44  # characters
INTRO = """# Results

`make bench` runs every benchmark; `python -m benchmarks --only PART …` some of them. Quote the ratios: both programs
run in turn, so a slower machine slows both. A range is that of the rounds. Points of a plot are the runs of that
benchmark, the bars their ranges, the dashed line is the goal, and each machine has its color."""


def write_page(entries: Sequence[Entry], file: Path = FILE, images: Path = IMAGES) -> None:
    """Write the page, and a figure for each part that has measures."""
    for part in newest(entries):
        if runs := [entry for entry in entries if entry.part == part and entry.section.measures]:
            save_figure(figure_of(runs), images / f"bench-{part}.svg", kinds=("svg",))
    file.write_text(page_text(entries), encoding="utf-8")


def page_text(entries: Sequence[Entry]) -> str:
    """Return the page as Markdown: all measures in one table, then the newest run of each part."""
    parts = newest(entries)
    lines = [INTRO, "", "| measure | value | goal | kept | date |", "|---|---|---|---|---|"]
    lines += [row(measure, entry.date) for entry in parts.values() for measure in entry.section.measures]
    for part, entry in parts.items():
        lines += ["", f"## {entry.section.title}", "", entry.section.text, ""]
        lines.append(f"`python -m benchmarks --only {part}`, {entry.date}, {entry.machine}.")
        if entry.section.measures:
            lines += ["", picture(part, entry.section.title)]
    return "\n".join(lines) + "\n"


def row(measure: Measure, date: str) -> str:
    goal = measure.goal
    kept = "" if goal is None else "yes" if goal.is_kept(measure.value) else "**no**"
    return f"| {measure.name} | {measure.shown} | {goal or ''} | {kept} | {date} |"


def picture(part: str, title: str) -> str:
    """Return HTML that shows the light or the dark figure."""
    place = f"../docs/img/bench-{part}"
    return (
        f'<picture>\n  <source media="(prefers-color-scheme: dark)" srcset="{place}-dark.svg">\n'
        f'  <img alt="{title}: each measure over the runs of this benchmark" src="{place}.svg">\n</picture>'
    )


def figure_of(runs: Sequence[Entry]) -> Figure:
    """Draw a plot for each measure of the newest run, over all runs that have it."""
    names = [measure.name for measure in runs[-1].section.measures]
    rows = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(3.4 * min(COLUMNS, len(names)), 2.3 * rows), layout="constrained", facecolor=PAPER)
    machines = list(dict.fromkeys(entry.machine.cpu for entry in runs))
    for place, name in enumerate(names, 1):
        axes = figure.add_subplot(rows, min(COLUMNS, len(names)), place)
        draw(axes, name, list(points(runs, name)), machines)
    if len(machines) > 1:
        names_of = [Line2D([], [], color=color_of(cpu, machines), marker="o", linestyle="") for cpu in machines]
        figure.legend(names_of, machines, loc="outside lower left", frameon=False, fontsize=7, labelcolor=INK)
    return figure


def color_of(cpu: str, machines: Sequence[str]) -> str:
    return COLORS[machines.index(cpu) % len(COLORS)]


def points(runs: Sequence[Entry], name: str) -> Iterator[tuple[Entry, Measure]]:
    """Yield the runs that have a measure of this name, and the measure."""
    for entry in runs:
        for measure in entry.section.measures:
            if measure.name == name:
                yield entry, measure


def draw(axes: Axes, name: str, found: Sequence[tuple[Entry, Measure]], machines: Sequence[str]) -> None:
    """Draw one measure: a point with its range for each run, and the goal of the newest."""
    axes.set_facecolor(PAPER)
    last = found[-1][1]
    axes.set_title(textwrap.fill(name, TITLE_WIDTH), loc="left", fontsize=8, color=INK)
    for place, (entry, one) in enumerate(found):
        color = color_of(entry.machine.cpu, machines)
        ranges = [[one.value - one.low], [one.high - one.value]]
        axes.errorbar([place], [one.value], yerr=ranges, fmt="o", color=color, markersize=4, capsize=2, linewidth=1)
    if last.goal is not None:
        axes.axhline(last.goal.value, color=INK, linewidth=0.8, linestyle="--")
    axes.set_xlim(-0.5, max(len(found), 4) - 0.5)
    lowest, highest = min(one.low for _, one in found), max(one.high for _, one in found)
    axes.set_ylim(min(0.0, 1.1 * lowest), 1.1 * max(highest, last.goal.value if last.goal else 0.0))
    axes.set_xticks(range(len(found)), [entry.date[5:] for entry, _ in found], fontsize=7)
    axes.tick_params(colors=INK, length=0, labelsize=7)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(INK)
