"""Curves of groups of runs: the mean over seeds at every point that all runs of a group have."""

import math
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean, stdev

from regpt.comparison.figures import hellaswag_records, label_x_axis, x_axis
from regpt.fairness.learning_curves import EvalPoint, LearningCurve, learning_curve
from regpt.fairness.seed_groups import SeedGroup
from regpt.rendering.charts import plot_band
from regpt.rendering.figure_style import COLORS, Line, draw_lines, new_figure, save_figure, short_name
from regpt.reporting.published import CHANCE
from regpt.tracking.journal import TaskRecord
from regpt.tracking.run import primary_accuracy


def error_over_seeds(values: Sequence[float]) -> float:
    """Return the standard error of the mean; 0, which stands for unknown, for one value."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def mean_curve(group: SeedGroup) -> LearningCurve | None:
    """Return the mean learning curve of a group; None without runs, and for runs validated on different windows.

    The standard errors are over seeds. Steps and validations that a run lacks are left out.
    """
    curves = [curve for model in group.members if (curve := learning_curve(model))]
    if len(curves) < len(group.members) or len({curve.measured_on for curve in curves}) > 1:
        return None
    steps = [{tokens: (seconds, loss) for tokens, seconds, loss in curve.steps} for curve in curves]
    looks = [{point.tokens: point for point in curve.evaluations} for curve in curves]
    return LearningCurve(
        name=group.name,
        measured_on=curves[0].measured_on,
        flops_per_token=curves[0].flops_per_token,
        steps=[
            (tokens, fmean(own[tokens][0] for own in steps), group.mean([own[tokens][1] for own in steps]))
            for tokens in sorted(set.intersection(*map(set, steps)))
        ],
        evaluations=[
            mean_point(group, [own[tokens] for own in looks]) for tokens in sorted(set.intersection(*map(set, looks)))
        ],
        has_known_speed=all(curve.has_known_speed for curve in curves),
        tokenizer=curves[0].tokenizer,
        bits_per_nat=curves[0].bits_per_nat,
    )


def mean_point(group: SeedGroup, points: Sequence[EvalPoint]) -> EvalPoint:
    losses = tuple(group.by_seed([point.loss for point in points]).values())
    seconds = fmean(point.seconds for point in points)
    return EvalPoint(points[0].tokens, seconds, fmean(losses), error_over_seeds(losses), by_seed=losses)


def draw_mean_hellaswag(groups: Sequence[SeedGroup], path: Path) -> bool:
    """Draw the mean HellaSwag accuracies of the groups whose runs were all scored; False without any."""
    figure, axes = new_figure("HellaSwag accuracy")
    has_any = False
    for group, color in reversed(list(zip(groups, cycle(COLORS), strict=False))):
        points = mean_accuracies(group)
        if not points:
            continue
        has_any = True
        tokens, shares = [tokens for tokens, _ in points], [group.mean(own) for _, own in points]
        seeds = [group.by_seed(own).values() for _, own in points]
        label = f"{short_name(group.name)} (last {shares[-1]:.4f})"
        plot_band(axes, tokens, shares, [(min(own), max(own)) for own in seeds], color, label)
    if has_any:
        label_x_axis(axes, x_axis("tokens", []), "Means over seeds. Bands: lowest to highest seed.")
        draw_lines(axes, [Line("chance", CHANCE)])
        save_figure(figure, path)
    return has_any


def mean_accuracies(group: SeedGroup) -> list[tuple[int, list[float]]]:
    """Return the tokens at which every run of a group was scored on the same items, and the accuracy of each run."""
    records: list[dict[int, TaskRecord]] = [
        {record.tokens: record for record in hellaswag_records(model)} for model in group.members
    ]
    if len({record.digest for own in records for record in own.values()}) != 1:
        return []
    common = sorted(set.intersection(*map(set, records)))
    return [(tokens, [primary_accuracy(own[tokens])[0] for own in records]) for tokens in common]
