"""The figure of effects: the difference of each change with its interval, and every seed."""

import math
from collections.abc import Sequence
from pathlib import Path

from regpt.ablation.effects import Effect
from regpt.rendering.figure_style import COLORS, FAINT, INK, finish_axes, new_figure, save_figure, short_name


def draw_effects(found: Sequence[Effect], path: Path) -> None:
    """Draw one row for each change, the first on top; write the figure in light and dark."""
    figure, axes = new_figure("Difference of the final validation loss from the base (nats per token)")
    figure.set_figheight(max(2.2, 1.2 + 0.42 * len(found)))
    axes.axvline(0.0, color=INK, linewidth=1.0)
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.grid(visible=False, axis="y")
    for place, effect in enumerate(reversed(found)):
        color = COLORS[0] if effect.is_significant and effect.mean < 0 else COLORS[1]
        half = effect.half_width
        if math.isfinite(half):
            axes.plot([effect.mean - half, effect.mean + half], [place, place], color=color, linewidth=2.2)
        axes.plot(effect.differences, [place] * len(effect.differences), "o", color=color, markersize=3.5, alpha=0.5)
        axes.plot([effect.mean], [place], "o", color=color, markersize=7)
    axes.set_yticks(range(len(found)), [short_name(effect.arm) for effect in reversed(found)])
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.set_xlabel("arm − base; bars: 95 % intervals over seeds, small dots: seeds", color=INK, fontsize=9.5)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+.3g}" if value else "0")
    finish_axes(axes)
    save_figure(figure, path)
