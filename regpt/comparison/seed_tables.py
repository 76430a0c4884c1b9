"""The tables of groups of runs: means over seeds, the final loss of every seed, and the settings that differ."""

from collections.abc import Sequence

from regpt.base.format import NO_VALUE
from regpt.comparison.final_metrics import Cell, Missing, ModelState, Quantity, Value, final_metrics
from regpt.comparison.seed_curves import error_over_seeds
from regpt.comparison.tables import Table, cell_text, differences_table, row_name
from regpt.fairness.seed_groups import Seed, SeedGroup

OF_SEEDS = ("run.seed", "run.weights_seed")
WITH_ERRORS = {
    Quantity.LAST_LOSS,
    Quantity.AVERAGED_LOSS,
    Quantity.BEST_LOSS,
    Quantity.BITS_PER_BYTE,
    Quantity.ACCURACY,
    Quantity.AVERAGED_ACCURACY,
}


def mean_metrics_table(groups: Sequence[SeedGroup]) -> Table:
    """Return the final metrics of each group: means over seeds, ± their standard error."""
    counts = [str(group.n_seeds) if group.seeds else NO_VALUE for group in groups]
    rows = [["Seeds", *counts]]
    for row in final_metrics([model for group in groups for model in group.members]):
        cells = iter(row.cells)
        means = [mean_cell(group, row.quantity, [next(cells) for _ in group.members]) for group in groups]
        rows.append([row_name(row), *(cell_text(row.quantity, cell) for cell in means)])
    return Table(["", *(group.name for group in groups)], rows)


def mean_cell(group: SeedGroup, quantity: Quantity, cells: Sequence[Cell]) -> Cell:
    """Return the mean of the members' values; of their states, that of the one that has the fewest steps."""
    states = [cell for cell in cells if isinstance(cell, ModelState)]
    if states:
        return min(states, key=lambda state: state.step)
    values = [cell for cell in cells if isinstance(cell, Value)]
    if len(values) < len(cells):
        return next(cell for cell in cells if isinstance(cell, Missing))
    if not group.seeds:
        return values[0]
    by_seed = [*group.by_seed([value.value for value in values]).values()]
    same_step, same_items = ({getattr(value, name) for value in values} for name in ("step", "items"))
    return Value(
        sum(by_seed) / len(by_seed),
        error_over_seeds(by_seed) if quantity in WITH_ERRORS else 0.0,
        step=same_step.pop() if len(same_step) == 1 else None,
        items=same_items.pop() if len(same_items) == 1 else "",
    )


def seeds_table(groups: Sequence[SeedGroup]) -> Table:
    """Return the last validation loss of every seed, with a column for each group."""
    losses = [seed_losses(group) for group in groups]
    seeds = sorted({seed for own in losses for seed in own})
    rows = [[seed_text(seed), *(f"{own[seed]:.4f}" if seed in own else NO_VALUE for own in losses)] for seed in seeds]
    return Table(["Seed", *(group.name for group in groups)], rows)


def seed_losses(group: SeedGroup) -> dict[Seed, float]:
    losses = [model.loss.loss for model in group.members if model.loss]
    return group.by_seed(losses) if group.seeds and len(losses) == len(group.members) else {}


def seed_text(seed: Seed) -> str:
    """Write a seed; with that of the weights where the runs of a group share the order of the data."""
    return f"{seed[0]}, weights {seed[1]}" if len(seed) > 1 else str(seed[0])


def group_differences_table(groups: Sequence[SeedGroup]) -> Table:
    """Return the settings, machines and versions in which groups differ. Different values within a group are listed."""
    known = [group for group in groups if any(model.recipe is not None for model in group.members)]
    models = [model for group in known for model in group.members if model.recipe is not None]
    table = differences_table(models)
    rows = []
    for name, *cells in table.rows:
        if name in OF_SEEDS:
            continue
        values = iter(cells)
        by_group = [[next(values) for model in group.members if model.recipe is not None] for group in known]
        rows.append([name, *("; ".join(dict.fromkeys(own)) for own in by_group)])
    return Table(["Setting", *(group.name for group in known)], rows)
