"""Groups of runs whose recipes differ only in seeds."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from regpt.fairness.models import ComparedModel
from regpt.recipe.differences import recipe_digest
from regpt.recipe.recipe import Recipe
from regpt.tracking.layout import ABLATION_FILE
from regpt.tracking.run import Run

Seed = tuple[int, ...]  # run.seed; with the seed of the weights if all runs of a group have the same run.seed
SEPARATORS = "-_. "
LEAST_SEEDS = 2  # of a group that is tested


@dataclass(frozen=True)
class SeedGroup:
    """Runs of one recipe with different seeds, in the order of the seeds; or one model that is no such run."""

    name: str
    members: tuple[ComparedModel, ...]

    @property
    def seeds(self) -> list[Seed]:
        """Return the seed of each member; empty for a model that is no run."""
        runs = [model.run.recipe.run for model in self.members if model.run]
        with_weights = len(runs) > 1 and len({run.seed for run in runs}) == 1
        return [(run.seed, run.initial_seed) if with_weights else (run.seed,) for run in runs]

    @property
    def n_seeds(self) -> int:
        return len(set(self.seeds))

    def by_seed(self, values: Sequence[float]) -> dict[Seed, float]:
        """Return the value of each seed, from those of the members. Members of one seed are no two draws: their mean.

        So copies, and runs that share a data order but not the weights, count once.
        """
        found: dict[Seed, list[float]] = {}
        for seed, value in zip(self.seeds or [()], values, strict=True):
            found.setdefault(seed, []).append(value)
        return {seed: fmean(own) for seed, own in found.items()}

    def mean(self, values: Sequence[float]) -> float:
        return fmean(self.by_seed(values).values())


def seed_groups(models: Sequence[ComparedModel]) -> list[SeedGroup]:
    """Group runs by recipe; every other model is a group by itself. The groups have the order of their first members.

    Returns no groups unless two of them have two seeds or more: then the models are compared one by one. Runs with
    which an ablation tuned a setting are in no group.
    """
    members: dict[str, list[ComparedModel]] = {}
    left_out = {model.name for model in tuning_runs(models)}
    for model in models:
        if model.name in left_out:
            continue
        is_run = model.run is not None and model.is_run
        key = recipe_digest(without_seeds(model.run.recipe)) if model.run and is_run else f"model {model.name}"
        members.setdefault(key, []).append(model)
    groups = [SeedGroup("", tuple(sorted(own, key=seed_of))) for own in members.values()]
    if sum(group.n_seeds >= LEAST_SEEDS for group in groups) < 2:
        return []
    return [replace(group, name=name) for group, name in zip(groups, group_names(groups), strict=True)]


def tuning_runs(models: Sequence[ComparedModel]) -> list[ComparedModel]:
    """Return the runs with which an ablation chose a setting. It compares runs of other seeds.

    The best of several values has the lowest loss partly by luck, so its run is not a seed like the others.
    """
    return [model for model in models if model.is_run and model.run and is_tuning_run(model.run)]


def is_tuning_run(run: Run) -> bool:
    try:
        seeds = json.loads((run.path.resolve().parent.parent / ABLATION_FILE).read_text(encoding="utf-8"))["seeds"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return run.recipe.run.seed not in seeds


def without_seeds(recipe: Recipe) -> Recipe:
    return replace(recipe, run=replace(recipe.run, seed=0, weights_seed=0))


def seed_of(model: ComparedModel) -> tuple[int, int]:
    return (model.run.recipe.run.seed, model.run.recipe.run.initial_seed) if model.run else (0, 0)


def group_names(groups: Sequence[SeedGroup]) -> list[str]:
    """Name groups by what their runs' names have in common, else by their folders, else by their first runs."""
    for name_of in (common_name, common_folder):
        names = [name_of(group) for group in groups]
        if all(names) and len(set(names)) == len(names):
            return names
    return [group.members[0].name for group in groups]


def common_name(group: SeedGroup) -> str:
    """Return what the names of the runs begin with, without digits of the seeds: 'muon' of muon-1337, muon-1338."""
    if len(group.members) == 1:
        return group.members[0].name
    names = [model.run.id if model.run else model.name for model in group.members]
    first, last = min(names), max(names)  # whatever these two begin with, all do
    common = next((n for n, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    return first[:common].rstrip("0123456789").rstrip(SEPARATORS)


def common_folder(group: SeedGroup) -> str:
    folders = {model.path.resolve().parent.name for model in group.members}
    return folders.pop() if len(folders) == 1 else ""
