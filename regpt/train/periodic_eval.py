"""What is looked at on the way: validation loss, HellaSwag and samples, where they are due and were not taken before.

Looking changes nothing: no random number of the training is drawn, no gradient made, nothing compiled.
"""

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from regpt.base.errors import DataError
from regpt.base.recipe import Recipe
from regpt.data.shards import TokenWindows
from regpt.data.tokenizer import encode
from regpt.distributed.device import Device
from regpt.distributed.rank_group import RankGroup
from regpt.evaluation.sampling import Sampling, continuations
from regpt.evaluation.scoring import PackedTask, choice_losses, make_predictions, max_batch_tokens
from regpt.evaluation.validation import validation
from regpt.tasks.catalog import TASKS
from regpt.tasks.items import Items, open_items
from regpt.tracking.journal import Record, SampleRecord, TaskRecord, ValidationRecord, read_history
from regpt.tracking.layout import RunPaths
from regpt.tracking.window_losses import window_losses_file, write_window_losses
from regpt.train.console import Console
from regpt.train.parallel import Parallel

HELLASWAG = TASKS["hellaswag"]
IN_RUN = RunPaths(Path())  # the journal holds paths relative to the run directory


class PeriodicEvaluation:
    """What a run's recipe asks to be looked at, and what of it was looked at already."""

    def __init__(
        self,
        recipe: Recipe,
        run: Path,
        device: Device,
        ranks: RankGroup,
        parallel: Parallel,
        windows: TokenWindows,
        data: str,
        console: Console,
    ) -> None:
        """`data` is the digest of the set that the windows are of."""
        self.data = data
        self.recipe, self.run, self.device, self.ranks = recipe, run, device, ranks
        self.parallel, self.windows, self.console = parallel, windows, console
        self.losses: dict[int, float] = {}  # validation's, by step
        self.hellaswag_steps: set[int] = set()
        self.sample_steps: set[int] = set()

    def open(self, write: Callable[[Record], None], check: Callable[[], None]) -> str:
        """Make ready, once, before the first look; returns why HellaSwag will not be measured, if it will not.

        `check` is called between two pieces of work; it may raise to stop. Raises DataError where the recipe names a
        file for HellaSwag that cannot be used; what is found nowhere is not asked.
        """
        self.write, self.check = write, check
        self.exam: PackedTask | None = None
        if not self.recipe.evaluation.hellaswag_every:
            return "evaluation.hellaswag_every = 0"
        items, problem = self.hellaswag()
        if items is not None:
            self.exam = PackedTask(items, self.recipe.model.block_size, max_batch_tokens(self.recipe, self.device))
        return problem

    def hellaswag(self) -> tuple[Items | None, str]:
        """(the items, nothing) where all ranks have the same, else (None, why)."""
        asked = self.recipe.evaluation

        @cache
        def found() -> tuple[Items | None, str]:
            try:
                return open_items(HELLASWAG, asked.hellaswag_file, asked.hellaswag_items), ""
            except DataError as error:
                if asked.hellaswag_file:
                    raise
                return None, str(error)

        first = self.ranks.on_main(lambda: found()[1])  # who may fetch it for all
        items, problem = (None, first) if first else found()
        mark = int(items.digest[:15], 16) if items else 0
        if len(np.unique(self.ranks.all_gather(np.array([mark], dtype=np.int64)))) > 1:
            return None, "its items are not the same on all ranks"
        return items, problem

    def restore(self) -> None:
        """What earlier attempts have looked at already."""

        def known() -> Any:
            history = read_history(self.run)
            self.console.recall(history)
            losses = [(record.step, record.loss) for record in history.validations]
            tasks = [record.step for record in history.tasks if record.task == HELLASWAG.name]
            return losses, tasks, [record.step for record in history.samples]

        losses, examined, sampled = self.ranks.on_main(known)
        self.losses, self.hellaswag_steps, self.sample_steps = dict(losses), set(examined), set(sampled)

    def evaluate_due(self, step: int) -> None:
        """After so many steps, take what is due and was not taken."""
        asked = self.recipe.evaluation
        if step not in self.losses and (step == 0 or self.recipe.is_due(step, asked.validation_every)):
            self.validate(step)
        due = step == 0 or self.recipe.is_due(step, asked.hellaswag_every)
        if due and self.exam is not None and step not in self.hellaswag_steps:
            self.score_hellaswag(step, self.exam)
        if step not in self.sample_steps and self.recipe.is_due(step, asked.sample_every):
            self.sample(step)

    def best(self) -> dict[str, float] | None:
        """The step with the lowest validation loss so far."""
        if not self.losses:
            return None
        step = min(self.losses, key=lambda step: self.losses[step])
        return {"step": step, "validation_loss": self.losses[step]}

    def validate(self, step: int) -> None:
        started_at = time.perf_counter()
        with self.parallel.eval_mode() as model:
            found = validation(
                model, self.windows, self.recipe, self.device, self.progress_callback("validation"), self.ranks
            )
        path = IN_RUN.evaluation(step) / window_losses_file(self.data, found.windows)
        if self.ranks.is_main:
            self.save_file(path, lambda: write_window_losses(self.run / path, found.by_window))
        record = ValidationRecord(
            step=step,
            tokens=self.recipe.tokens_after(step),
            loss=found.loss,
            windows=found.windows,
            seconds=time.perf_counter() - started_at,
            standard_error=found.standard_error,
            bits_per_byte=found.bits_per_byte,
            path=path.as_posix(),
        )
        self.write(record)
        self.losses[step] = found.loss
        self.console.validation(record)

    def score_hellaswag(self, step: int, exam: PackedTask) -> None:
        """HellaSwag; what was answered to each item goes into a file of its own."""
        started_at = time.perf_counter()
        with self.parallel.eval_mode() as model:
            losses = choice_losses(model, exam, self.device, self.progress_callback("HellaSwag"), self.ranks)
        self.hellaswag_steps.add(step)
        if not self.ranks.is_main:
            return
        answers = make_predictions(exam, losses)
        path = IN_RUN.evaluation(step) / answers.file_name
        by_rule = {rule.name: answers.accuracy(rule) for rule in answers.metrics}
        self.save_file(path, lambda: answers.write(self.run / path))
        record = TaskRecord(
            step=step,
            tokens=self.recipe.tokens_after(step),
            task=HELLASWAG.name,
            items=answers.description,
            digest=answers.digest,
            accuracy={name: accuracy.value for name, accuracy in by_rule.items()},
            standard_error={name: accuracy.error for name, accuracy in by_rule.items()},
            cut=answers.truncated,
            path=path.as_posix(),
            seconds=time.perf_counter() - started_at,
            count=answers.n_items,
            dataset_size=answers.dataset_size,
            published=answers.published,
        )
        self.write(record)
        self.console.task(record)

    def save_file(self, path: Path, write: Callable[[], None]) -> None:
        """What a paired test needs; where it cannot be written, the means stand in the journal, and the run goes on."""
        try:
            write()
        except OSError as error:
            self.console.note(
                f"{self.run / path}: cannot be written ({error.strerror}); no paired test will be possible"
            )

    def sample(self, step: int) -> None:
        asked = self.recipe.evaluation
        if asked.sample_count == 0:
            return
        with self.parallel.eval_mode() as model:
            texts = continuations(
                model,
                asked.sample_prompt,
                asked.sample_count,
                max(0, asked.sample_tokens - len(encode(asked.sample_prompt))),
                Sampling(top_k=asked.sample_top_k, seed=asked.sample_seed),
                self.check,
                self.ranks,
            )
        record = SampleRecord(
            step=step, prompt=asked.sample_prompt, texts=texts, seed=asked.sample_seed, top_k=asked.sample_top_k
        )
        self.write(record)
        self.console.sample(record)

    def progress_callback(self, what: str) -> Callable[[int, int], None]:
        def between(done: int, of: int) -> None:
            self.check()
            if done:
                self.console.busy(f"{what}: group", done, of)

        return between
