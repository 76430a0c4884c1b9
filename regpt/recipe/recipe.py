"""A recipe: all settings of a run, typed and frozen, with derived values and a check of the whole."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields

from regpt.base.errors import Problem
from regpt.recipe.architecture import ModelRecipe
from regpt.recipe.batch_ramp import BatchSizes, batch_sizes
from regpt.recipe.optimization import OptimizerRecipe
from regpt.recipe.run_settings import RunRecipe
from regpt.recipe.schema import at_least, setting
from regpt.recipe.sections import (
    CheckpointRecipe,
    DataRecipe,
    EvaluationRecipe,
    GuardRecipe,
)
from regpt.recipe.vocabulary import GPT2, SIZES, padded_size


@dataclass(frozen=True, kw_only=True)
class PublishedRecipe:
    """Results that someone published for this recipe. They never change a run."""

    origin: str = setting("", "Source of the published results.", on_resume="free")
    hardware: str = setting("", "Hardware of the published run.", on_resume="free")
    hours: float = setting(0.0, "Training time of the published run in hours; 0: not published.", on_resume="free")
    cost_usd: float = setting(-1.0, "Cost of the published run in USD; negative: not published.", on_resume="free")
    validation_loss: float = setting(
        0.0, "Published validation loss in nats per token; 0: not published.", on_resume="free"
    )
    hellaswag: float = setting(0.0, "Published HellaSwag accuracy, from 0 to 1; 0: not published.", on_resume="free")

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 0, "hours", "validation_loss")
        if not 0.0 <= self.hellaswag <= 1.0:
            yield Problem(
                "published.hellaswag", f"published.hellaswag = {self.hellaswag} is not an accuracy between 0 and 1"
            )


@dataclass(frozen=True)
class Given:
    """The settings, as 'data.source', that a user gave a recipe, by where. Those of a shipped recipe are not given."""

    in_file: frozenset[str] = frozenset()  # of the user's own recipe file
    on_command_line: frozenset[str] = frozenset()

    @property
    def anywhere(self) -> frozenset[str]:
        return self.in_file | self.on_command_line

    @property
    def about_dataset(self) -> frozenset[str]:
        """The settings that describe the dataset at data.path: a path on the command line names another one than the
        file does, so only what stands next to it counts."""
        return self.on_command_line if "data.path" in self.on_command_line else self.anywhere


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a run. `name` is the file's name without .toml."""

    name: str
    run: RunRecipe = field(default_factory=RunRecipe)
    data: DataRecipe = field(default_factory=DataRecipe)
    model: ModelRecipe = field(default_factory=ModelRecipe)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    evaluation: EvaluationRecipe = field(default_factory=EvaluationRecipe)
    checkpoint: CheckpointRecipe = field(default_factory=CheckpointRecipe)
    guard: GuardRecipe = field(default_factory=GuardRecipe)
    published: PublishedRecipe = field(default_factory=PublishedRecipe)
    given: Given | None = field(default=None, compare=False, repr=False)  # None: a program built it; all settings are

    def problems(self) -> Iterator[Problem]:
        """Yield every problem, with the values that conflict."""
        is_usable = True
        for section in SECTIONS:
            values = getattr(self, section)
            infinite = [
                f.name
                for f in fields(values)
                if isinstance(v := getattr(values, f.name), float) and not math.isfinite(v)
            ]
            too_large = [
                f.name for f in fields(values) if isinstance(v := getattr(values, f.name), int) and abs(v) >= 2**63
            ]
            is_usable = is_usable and not infinite + too_large
            for key in too_large:
                yield Problem(name := f"{section}.{key}", f"{name} = {getattr(values, key)} is not below 2^63")
            for key in infinite:
                yield Problem(name := f"{section}.{key}", f"{name} = {getattr(values, key)} is not a finite number")
            if not infinite and not too_large:
                yield from values.problems()
        if is_usable:
            yield from self.optimizer.length_problems(self.run.max_steps)
            if not self.run.init_from:
                yield from self.batch_problems()
        if not self.run.init_from:  # else once the source's shape is known
            yield from self.vocabulary_problems(SIZES.get(self.data.tokenizer, 1))
        if self.optimizer.head_lr and self.model.tied_head:
            yield Problem(
                "optimizer.head_lr",
                f"optimizer.head_lr = {self.optimizer.head_lr} needs a head of its own, but model.tied_head = true;"
                " set optimizer.embedding_lr, or model.tied_head=false",
                ("model.tied_head",),
            )

    def shape_problems(self) -> Iterator[Problem]:
        """Check the batch and the vocabulary of a recipe whose model has come with the weights of `run.init_from`."""
        yield from self.batch_problems()
        yield from self.vocabulary_problems(SIZES.get(self.data.tokenizer, 1))

    def vocabulary_problems(self, tokens: int) -> Iterator[Problem]:
        """Check that the model has a row for each of the tokenizer's tokens."""
        if 1 <= self.model.vocab_size < tokens:
            owner = "GPT-2" if self.data.tokenizer == GPT2 else self.data.tokenizer
            yield Problem(
                "model.vocab_size",
                f"model.vocab_size = {self.model.vocab_size} is smaller than {owner}'s {tokens} tokens; set"
                f" model.vocab_size={padded_size(tokens)}, or model.vocab_size=0 with"
                f" data.tokenizer={self.data.tokenizer}",
                ("data.tokenizer",),
            )

    def batch_problems(self, ranks: int = 1) -> Iterator[Problem]:
        """Check that every step divides into micro-batches; the problem suggests sizes that would."""
        B, T, total = self.data.micro_batch, self.model.block_size, self.data.total_batch_tokens
        on_ranks = f" x {ranks} ranks" if ranks > 1 else ""
        for stage in self.batch_sizes.stages[:-1] if min(B, T) >= 1 else ():
            if stage.batch_tokens % (B * T * ranks):
                yield Problem(
                    "data.batch_ramp",
                    f"data.batch_ramp = '{self.data.batch_ramp}': {stage.batch_tokens} is not divisible by"
                    f" data.micro_batch x model.block_size{on_ranks} = {B * T * ranks}; use multiples of that",
                    ("data.micro_batch", "model.block_size"),
                )
        if min(B, T, total) < 1 or total % (B * T * ranks) == 0:
            return
        yield Problem(
            "data.total_batch_tokens",
            f"data.total_batch_tokens = {total} is not divisible by data.micro_batch x model.block_size{on_ranks}"
            f" = {B} x {T}{on_ranks} = {B * T * ranks}; try {sizes_that_divide(B, T, total, ranks)}",
            ("data.micro_batch", "model.block_size"),
        )

    def accumulation_steps(self, ranks: int = 1) -> int:
        """Return the number of micro-batches that each rank accumulates in one optimizer step, after any ramp."""
        return self.data.total_batch_tokens // (self.data.micro_batch * self.model.block_size * ranks)

    def is_due(self, step: int, every: int) -> bool:
        """Return whether an action is due at `step`: at multiples of `every`, unless it is 0, and at the last step."""
        return step == self.run.max_steps or (every > 0 and step > 0 and step % every == 0)

    def times_due(self, after: int, every: int) -> int:
        """Return the number of steps later than `after` at which an action is due."""
        last = self.run.max_steps
        if after >= last:
            return 0
        return ((last - 1) // every - after // every if every else 0) + 1

    @property
    def batch_sizes(self) -> BatchSizes:
        """Return the numbers of tokens in steps, which grow if there is a ramp."""
        return batch_sizes(self.data.batch_ramp, self.data.total_batch_tokens)

    def batch_tokens(self, step: int) -> int:
        """Return the number of tokens in a step, counted from 0."""
        return self.batch_sizes.batch_tokens(step)

    def tokens_after(self, step: int) -> int:
        """Return the number of training tokens in the first `step` steps."""
        return self.batch_sizes.tokens_after(step)

    def batch_positions(self, number: int, step: int) -> range:
        """Return the positions, in the order of all windows, of batch `number` when `step` trains on it.

        They differ after a rollback, which excludes batches. The size is that of the step, so that the tokens of a run
        are a function of its steps; the position is that of the batch, so that none is trained on twice.
        """
        first = self.tokens_after(number) // self.model.block_size
        return range(first, first + self.batch_tokens(step) // self.model.block_size)

    @property
    def batch_windows(self) -> int:
        """Return the number of sequences in one optimizer step, after any ramp: the largest step."""
        return self.data.total_batch_tokens // self.model.block_size

    @property
    def common_windows(self) -> int:
        """Return the largest number of sequences that divides every step."""
        return math.gcd(*(stage.batch_tokens // self.model.block_size for stage in self.batch_sizes.stages))

    def full_steps_left(self, step: int) -> float:
        """Return the rest of the run after `step` steps in tokens, divided by total_batch_tokens."""
        return (self.total_tokens - self.tokens_after(step)) / self.data.total_batch_tokens

    @property
    def total_tokens(self) -> int:
        """Return the number of training tokens in the whole run."""
        return self.tokens_after(self.run.max_steps)

    @property
    def is_warmup_too_long(self) -> bool:
        """Return whether the warm-up lasts for the whole run."""
        return self.optimizer.warmup_steps >= self.run.max_steps

    @property
    def warmup_tokens(self) -> int:
        """Return the number of training tokens in the warm-up."""
        return self.tokens_after(self.optimizer.warmup_steps)


def warmup_advice(warmup_steps: int, max_steps: int) -> str:
    """Describe a warm-up that lasts for the whole run, with the remedy: a twentieth of the run, as in demo-modern."""
    return (
        f"optimizer.warmup_steps = {warmup_steps:,} leaves no step at optimizer.max_lr (run.max_steps = {max_steps:,});"
        f" set optimizer.warmup_steps={max_steps // 20}"
    )


SECTIONS = tuple(f.name for f in fields(Recipe) if f.name not in ("name", "given"))


def sizes_that_divide(B: int, T: int, total: int, ranks: int) -> str:
    """Suggest settings with which the batch divides, as the command line accepts them."""
    remedies = []
    if total % (T * ranks) == 0:
        remedies.append(f"data.micro_batch = {nearest_divisors(total // (T * ranks), B)}")
    if ranks > 1 and total % (B * T) == 0:
        fewer = nearest_divisors(total // (B * T), ranks)
        remedies.append(f"{fewer} rank{'s' if fewer != '1' else ''}")
    if not remedies:
        remedies.append(f"data.total_batch_tokens = {-(-total // (B * T * ranks)) * B * T * ranks}")
    return ", or ".join(remedies)


def nearest_divisors(number: int, to: int) -> str:
    """Return the three divisors of a number that are nearest to `to`, as in '2 or 4 or 8'."""
    divisors = [n for n in range(1, number + 1) if number % n == 0]
    return " or ".join(map(str, sorted(sorted(divisors, key=lambda n: abs(n - to))[:3])))
