"""Evaluation during training: validation loss, HellaSwag and samples at the steps where they are due.

An evaluation does not change training: it draws none of its random numbers, and computes and compiles nothing for it.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regpt.base.errors import DataError
from regpt.console.training import TrainingConsole
from regpt.data.shards import TokenWindows
from regpt.data.tokenizer import Tokenizer
from regpt.distributed.rank_group import RankGroup
from regpt.evaluation.sampling import continuations
from regpt.evaluation.scoring import PackedTask, choice_losses, make_predictions, max_batch_tokens
from regpt.evaluation.sharding import ReportProgress
from regpt.evaluation.text_losses import text_losses
from regpt.evaluation.validation import Validation, validation
from regpt.generation.drawing import Sampling
from regpt.model.gpt import GPT
from regpt.optimizer.average import averaged_weights, has_average
from regpt.parallel.model import Parallel
from regpt.recipe.recipe import Recipe
from regpt.tasks.catalog import TASKS
from regpt.tasks.items import Items, open_items
from regpt.tracking.journal import Record, SampleRecord, TaskRecord, ValidationRecord, read_history
from regpt.tracking.layout import RunPaths
from regpt.tracking.predictions import Accuracy, Predictions
from regpt.tracking.window_losses import (
    text_losses_file,
    window_losses_file,
    write_text_losses,
    write_window_losses,
)

HELLASWAG = TASKS["hellaswag"]
IN_RUN = RunPaths(Path())  # the journal holds paths relative to the run directory


def open_hellaswag(recipe: Recipe, ranks: RankGroup) -> tuple[Items | None, str]:
    """Open HellaSwag as the recipe asks. Returns (items, "") if all ranks have the same items, else (None, why not).

    Raises DataError where the recipe names a file that cannot be used. Missing published items are no error.
    """
    settings = recipe.evaluation
    if not settings.hellaswag_every:
        return None, "evaluation.hellaswag_every = 0"

    @cache
    def opened() -> tuple[Items | None, str]:
        try:
            return open_items(HELLASWAG, settings.hellaswag_file, settings.hellaswag_items), ""
        except DataError as error:
            if settings.hellaswag_file:
                raise
            return None, str(error)

    problem = ranks.on_main(lambda: opened()[1])  # rank 0 may download the items for all
    items, problem = (None, problem) if problem else opened()
    mark = int(items.digest[:15], 16) if items else 0
    if len(np.unique(ranks.all_gather(np.array([mark], dtype=np.int64)))) > 1:
        return None, "its items are not the same on all ranks"
    return items, problem


class PeriodicEvaluation:
    """The evaluations that a recipe asks for, and the steps at which each was done already."""

    def __init__(
        self,
        recipe: Recipe,
        run_dir: Path,
        parallel: Parallel,
        windows: TokenWindows,
        data_digest: str,
        tokenizer: Tokenizer,
        hellaswag: Items | None,
        write: Callable[[Record], None],
        check_stop: Callable[[], None],
        console: TrainingConsole,
    ) -> None:
        """`windows` are those of the validation split of the dataset with `data_digest`; `hellaswag` are its items.

        `write` records a result. `check_stop` is called between two pieces of work and may raise to stop.
        """
        self.run_dir, self.windows, self.data_digest, self.hellaswag = run_dir, windows, data_digest, hellaswag
        self.parallel, self.device, self.ranks = parallel, parallel.device, parallel.ranks
        self.tokenizer = tokenizer
        self.write, self.check_stop, self.console = write, check_stop, console
        self.losses: dict[int, float] = {}  # validation losses by step
        self.hellaswag_steps: set[int] = set()
        self.sample_steps: set[int] = set()
        self.use_recipe(recipe)

    def use_recipe(self, recipe: Recipe) -> None:
        """Evaluate as `recipe` says from now on. Its micro-batch also limits the groups of questions."""
        self.recipe = recipe
        self.hellaswag_task = (
            PackedTask(self.hellaswag, recipe.model.block_size, max_batch_tokens(recipe, self.device), self.tokenizer)
            if self.hellaswag is not None
            else None
        )

    def use_less_memory(self) -> bool:
        """Evaluate groups of half the size from now on, which changes no result. False if they cannot be smaller."""
        size = self.recipe.data.micro_batch
        if size > 1:
            self.use_recipe(replace(self.recipe, data=replace(self.recipe.data, micro_batch=size // 2)))
        return size > 1

    def restore(self) -> None:
        """Read from the journal which evaluations earlier attempts have done."""

        def known() -> Any:
            history = read_history(self.run_dir)
            self.console.restore_durations(history)
            losses = [(record.step, record.loss) for record in history.validations]
            tasks = [record.step for record in history.tasks if record.task == HELLASWAG.name]
            return losses, tasks, [record.step for record in history.samples]

        losses, task_steps, sample_steps = self.ranks.on_main(known)
        self.losses, self.hellaswag_steps, self.sample_steps = dict(losses), set(task_steps), set(sample_steps)

    def evaluate_due(self, step: int) -> None:
        """Do the evaluations that are due after `step` steps and were not done before."""
        settings = self.recipe.evaluation
        if step not in self.losses and (step == 0 or self.recipe.is_due(step, settings.validation_every)):
            self.validate(step)
        due = step == 0 or self.recipe.is_due(step, settings.hellaswag_every)
        if due and self.hellaswag_task is not None and step not in self.hellaswag_steps:
            self.score_hellaswag(step, self.hellaswag_task)
        if step not in self.sample_steps and self.recipe.is_due(step, settings.sample_every):
            self.sample(step)

    def best(self) -> dict[str, float] | None:
        """Return the step with the lowest validation loss so far, and that loss; None before the first."""
        if not self.losses:
            return None
        step = min(self.losses, key=lambda step: self.losses[step])
        return {"step": step, "validation_loss": self.losses[step]}

    def validate(self, step: int) -> None:
        """Compute, record and print the validation loss."""
        started_at = time.perf_counter()
        report = self.progress_callback("validation")
        with self.parallel.eval_mode() as model:
            found = validation(
                model,
                self.windows,
                self.recipe,
                self.device,
                report,
                self.ranks,
                self.tokenizer,
                keep_tokens=step == self.recipe.run.max_steps,
            )
        averaged = self.averaged_loss() if has_average(self.parallel.optimizer) else None
        path = IN_RUN.evaluation(step) / window_losses_file(self.data_digest, found.windows)
        if self.ranks.is_main:
            self.save_file(path, lambda: write_window_losses(self.run_dir / path, found.by_window))
            self.save_text_losses(text_losses_file(path), found)
        record = ValidationRecord(
            step=step,
            tokens=self.recipe.tokens_after(step),
            loss=found.loss,
            windows=found.windows,
            seconds=time.perf_counter() - started_at,
            standard_error=found.standard_error,
            bits_per_byte=found.bits_per_byte,
            path=path.as_posix(),
            averaged_loss=averaged,
        )
        self.write(record)
        self.losses[step] = found.loss
        self.console.validation(record)

    def save_text_losses(self, path: Path, found: Validation) -> None:
        """Write the losses of blocks of text, where a validation kept them; they compare across tokenizers."""
        losses = None if found.by_token is None else text_losses(self.windows, found.by_token, self.tokenizer)
        if losses is not None:
            self.save_file(path, lambda: write_text_losses(self.run_dir / path, losses))

    @contextmanager
    def averaged_model(self) -> Iterator[GPT]:
        """Put the averaged weights into the model for an evaluation."""
        with averaged_weights(self.parallel.optimizer, self.recipe.optimizer), self.parallel.eval_mode() as model:
            yield model

    def averaged_loss(self) -> float:
        """Return the validation loss of the averaged weights, on the same windows."""
        report = self.progress_callback("validation, averaged weights")
        with self.averaged_model() as model:
            return validation(model, self.windows, self.recipe, self.device, report, self.ranks).loss

    def score_hellaswag(self, step: int, task: PackedTask) -> None:
        """Score HellaSwag, record and print the accuracy, and write the predictions for each item to a file."""
        started_at = time.perf_counter()
        with self.parallel.eval_mode() as model:
            losses = choice_losses(model, task, self.device, self.progress_callback("HellaSwag"), self.ranks)
        averaged = self.averaged_choice_losses(task) if has_average(self.parallel.optimizer) else None
        self.hellaswag_steps.add(step)
        if not self.ranks.is_main:
            return
        predictions = make_predictions(task, losses)
        path = IN_RUN.evaluation(step) / predictions.file_name
        by_metric = accuracies(predictions)
        of_average = {} if averaged is None else accuracies(replace(predictions, losses=averaged))
        self.save_file(path, lambda: predictions.write(self.run_dir / path))
        record = TaskRecord(
            step=step,
            tokens=self.recipe.tokens_after(step),
            task=HELLASWAG.name,
            items=predictions.description,
            digest=predictions.digest,
            accuracy={name: accuracy.value for name, accuracy in by_metric.items()},
            standard_errors={name: accuracy.error for name, accuracy in by_metric.items()},
            cut=predictions.truncated,
            path=path.as_posix(),
            seconds=time.perf_counter() - started_at,
            count=predictions.n_items,
            dataset_size=predictions.dataset_size,
            published=predictions.published,
            averaged_accuracy={name: accuracy.value for name, accuracy in of_average.items()} or None,
        )
        self.write(record)
        self.console.task(record)

    def averaged_choice_losses(self, task: PackedTask) -> NDArray[np.float64]:
        """Return the losses of the same choices under the averaged weights.  (questions, choices)"""
        report = self.progress_callback("HellaSwag, averaged weights")
        with self.averaged_model() as model:
            return choice_losses(model, task, self.device, report, self.ranks)

    def save_file(self, path: Path, write: Callable[[], None]) -> None:
        """Write a file that only paired tests need; if that fails, training continues with the means in the journal."""
        try:
            write()
        except OSError as error:
            self.console.note(
                f"{self.run_dir / path}: cannot be written ({error.strerror});"
                " paired tests will not be possible for this evaluation"
            )

    def sample(self, step: int) -> None:
        """Draw, record and print samples."""
        settings = self.recipe.evaluation
        if settings.sample_count == 0:
            return
        new_tokens = max(0, settings.sample_tokens - len(self.tokenizer.encode(settings.sample_prompt)))
        rounds, report = itertools.count(), self.progress_callback("samples")
        with self.parallel.eval_mode() as model:
            texts = continuations(
                model,
                settings.sample_prompt,
                settings.sample_count,
                new_tokens,
                Sampling(top_k=settings.sample_top_k, seed=settings.sample_seed),
                lambda: report(next(rounds), new_tokens),
                self.ranks,
                self.tokenizer,
            )
        record = SampleRecord(
            step=step,
            prompt=settings.sample_prompt,
            texts=texts,
            seed=settings.sample_seed,
            top_k=settings.sample_top_k,
        )
        self.write(record)
        self.console.sample(record)

    def progress_callback(self, name: str) -> ReportProgress:
        """Return a function that shows the progress of an evaluation and stops it if asked to."""

        def report(done: int, total: int) -> None:
            self.check_stop()
            self.console.evaluating(name, done, total)

        return report


def accuracies(predictions: Predictions) -> dict[str, Accuracy]:
    return {metric.name: predictions.accuracy(metric) for metric in predictions.metrics}
