"""Plot curves in a terminal with Braille characters, each of two by four dots."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from rich.text import Text

from regpt.base.format import short_count

DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # bits of a Braille character by row and column
ENTRY = 0.05  # of the x axis, where a curve may lie above the plot
LEAST = 20  # points; with fewer, the whole curve is in the plot


@dataclass(frozen=True)
class Curve:
    """Points from left to right: joined by a line, or each a mark of one character."""

    points: Sequence[tuple[float, float]]
    style: str = ""
    mark: str = ""


def draw_curves(curves: Sequence[Curve], width: int, height: int) -> list[Text]:
    """Return `height` lines of `width` characters with both axes and their limits; the x axis begins at 0.

    A curve may begin above the plot, so that a first loss of 10 does not flatten the curve around 3.
    """
    curves = [replace(curve, points=[p for p in curve.points if math.isfinite(p[1])]) for curve in curves]
    points = [point for curve in curves for point in curve.points]
    end = max((x for x, _ in points), default=0.0)
    few = max((len(curve.points) for curve in curves), default=0) < LEAST
    later = [y for x, y in points if few or x >= ENTRY * end]
    low, high = min((y for _, y in points), default=0.0), max(later, default=1.0)
    label = max(len(f"{value:.2f}") for value in (low, high))
    columns, rows = width - label - 2, height - 2
    if not points or columns < 4 or rows < 2:
        return [Text("no curve yet" if not points else "")]

    def place(x: float, y: float) -> tuple[int, int]:
        """Return the dot of a point, counted from the left and the top; negative above the plot."""
        across = x / end if end else 0.0
        down = (high - y) / (high - low) if high > low else 0.5
        return round(across * (2 * columns - 1)), round(down * (4 * rows - 1))

    cells: dict[tuple[int, int], int] = {}
    styles: dict[tuple[int, int], str] = {}
    marks: dict[tuple[int, int], str] = {}
    for curve in curves:
        dots = [place(x, y) for x, y in curve.points]
        if curve.mark:
            marks |= {(x // 2, y // 4): curve.mark for x, y in dots if y >= 0}
            styles |= {(x // 2, y // 4): curve.style for x, y in dots}
            continue
        last_of_column = list(dict(dots).items())
        for (x, y), (next_x, next_y) in pairwise([*last_of_column[:1], *last_of_column]):
            count = max(abs(next_x - x), abs(next_y - y), 1)
            for turn in range(count + 1):
                dot_x, dot_y = round(x + (next_x - x) * turn / count), round(y + (next_y - y) * turn / count)
                if dot_y >= 0:
                    cell = (dot_x // 2, dot_y // 4)
                    cells[cell] = cells.get(cell, 0) | DOTS[dot_y % 4][dot_x % 2]
                    styles.setdefault(cell, curve.style)

    lines = []
    for row in range(rows):
        value = {0: high, rows - 1: low}.get(row)
        line = Text(f"{'' if value is None else f'{value:.2f}':>{label}} │", no_wrap=True)
        for column in range(columns):
            cell = (column, row)
            line.append(marks.get(cell) or chr(0x2800 + cells[cell]) if cell in styles else " ", styles.get(cell))
        lines.append(line)
    return [
        *lines,
        Text(f"{'':>{label}} └{'─' * columns}"),
        Text(f"{'':>{label}}  0{short_count(end):>{columns - 1}}"),
    ]
