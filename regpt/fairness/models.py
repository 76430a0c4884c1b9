"""The models of a comparison, with their losses and task scores."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from regpt.recipe.recipe import PublishedRecipe, Recipe
from regpt.stats.losses import MeasuredLoss
from regpt.tasks.catalog import METRICS, TASKS
from regpt.tracking.predictions import Predictions
from regpt.tracking.run import Run


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """The score of a model on a multiple-choice task."""

    task: str
    items: str  # description; decisions use the digest and the counts
    digest: str  # of the items; empty: unknown
    n_items: int  # 0: unknown
    by_metric: dict[str, tuple[float, float]]  # accuracy and its standard error; the headline metric first
    truncated: int  # items whose context was cut at its start
    step: int | None
    predictions: Predictions | None = None  # None: not kept
    is_subset: bool = False

    @property
    def headline_metric(self) -> str:
        """Name of the headline metric; empty without one."""
        return next(iter(self.by_metric), "")


@dataclass(frozen=True, kw_only=True)
class ComparedModel:
    """A run, an evaluated model, or a recipe with published figures."""

    name: str
    command_name: str  # names the model in a command
    path: Path
    step: int | None = None
    tokens: int | None = None  # seen in training
    losses: list[MeasuredLoss] = field(default_factory=list)  # the first one is shown
    scores: list[TaskScore] = field(default_factory=list)  # the first one of each task is shown
    problems: list[str] = field(default_factory=list)  # of files that cannot be read
    tokenizer: str = ""  # name and digest; empty: unknown
    device: str = ""  # of training, or of the evaluation
    precision: str = ""
    compiled: bool | None = None
    recipe: Recipe | None = None
    run: Run | None = None  # the run, or the run of the evaluated checkpoint
    published: PublishedRecipe | None = None  # set for a recipe, whose figures were not measured here

    @property
    def loss(self) -> MeasuredLoss | None:
        return self.losses[0] if self.losses else None

    @property
    def is_run(self) -> bool:
        return self.run is not None and self.run.path == self.path

    @property
    def is_last(self) -> bool:
        """Whether the model is the last step of its run."""
        return self.run is not None and self.step == self.run.history.step

    def scores_on(self, task: str) -> list[TaskScore]:
        return [score for score in self.scores if score.task == task]

    def score_on(self, task: str) -> TaskScore | None:
        """Return the score that is shown; None if the model was not scored on the task."""
        return next(iter(self.scores_on(task)), None)


def align_on_shared_data(models: Sequence[ComparedModel]) -> list[ComparedModel]:
    """Put the losses and scores first that all models have on the same windows or items."""
    measured_on = [{loss.measured_on for loss in model.losses} for model in models if model.losses]
    shared = set.intersection(*measured_on) if measured_on else set()
    aligned = [replace(m, losses=sorted(m.losses, key=lambda loss: loss.measured_on not in shared)) for m in models]
    for task in all_tasks(models):
        item_sets = [{(s.n_items, s.digest) for s in m.scores_on(task)} for m in models if m.scores_on(task)]
        if shared_items := set.intersection(*item_sets):
            digest = max(shared_items)[1]
            aligned = [replace(model, scores=put_first(model.scores, task, digest)) for model in aligned]
    return aligned


def put_first(scores: Sequence[TaskScore], task: str, digest: str) -> list[TaskScore]:
    """Move the scores on these items before the other scores on the task."""
    return sorted(scores, key=lambda score: score.task == task and score.digest != digest)


def all_tasks(models: Sequence[ComparedModel]) -> list[str]:
    """Return the tasks that any model was scored on: ours in the catalog's order, then those of lm-eval."""
    scored = {score.task: None for model in models for score in model.scores}
    return [*(name for name in TASKS if name in scored), *(name for name in scored if name not in TASKS)]


def task_title(task: str) -> str:
    return TASKS[task].title if task in TASKS else task


def metric_text(metric: str) -> str:
    return METRICS[metric].description if metric in METRICS else f"lm-eval's {metric}"
