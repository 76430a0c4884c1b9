"""Count what a run does: training steps, evaluations, samples and checkpoints, and how much work each of them is.

Counts follow the loop in `training/trainer.py` and the schedule in `training/periodic_eval.py`.
"""

import contextlib
from dataclasses import dataclass

from regpt.base.errors import UserError
from regpt.data.shards import read_manifest
from regpt.optimizer.sizes import checkpoint_bytes
from regpt.recipe.recipe import Recipe
from regpt.tasks.catalog import HELLASWAG_ITEMS, TASKS
from regpt.tasks.items import open_items
from regpt.tokenization.opening import open_tokenizer

# One HellaSwag item as `tasks/packing.py` packs it, with padding. Measured with GPT-2's tokens: 173 to 184 positions
# and 126 to 130 targets, for 50 to 10,042 items, groups of 1,024 to 65,536 tokens, and blocks of 128 tokens or more.
ITEM_POSITIONS = 178  # computed by the blocks
ITEM_TARGETS = 127  # computed by the head
LETTERS_PER_TOKEN = 4  # of English text, where the tokenizer is missing


@dataclass(frozen=True)
class Workload:
    """The work of a whole run, over all ranks."""

    steps: int
    step_tokens: int  # after any ramp
    full_steps: float  # tokens of the run / step_tokens
    validations: int
    averaged_validations: int  # of the averaged weights, with the others
    validation_windows: int  # in each validation
    block_size: int
    task_evaluations: int  # of HellaSwag
    averaged_task_evaluations: int  # of the averaged weights, with the others
    task_items: int  # in each
    sample_sets: int
    sample_texts: int  # in each set
    sample_tokens: int  # new ones in each text
    checkpoints: int
    waited_checkpoints: int  # for which training waits until they are on the disk
    checkpoint_bytes: int  # of each

    @property
    def validation_positions(self) -> int:
        """Return the positions of all validations; block and head compute every one."""
        return self.validated_windows * self.block_size

    @property
    def validated_windows(self) -> int:
        """Return the windows of all validations."""
        return (self.validations + self.averaged_validations) * self.validation_windows

    @property
    def task_positions(self) -> int:
        """Return the positions that the blocks compute in all HellaSwag evaluations."""
        return self.scored_items * ITEM_POSITIONS

    @property
    def task_targets(self) -> int:
        """Return the positions at which the head computes a loss in all HellaSwag evaluations."""
        return self.scored_items * ITEM_TARGETS

    @property
    def scored_items(self) -> int:
        """Return the items of all HellaSwag evaluations."""
        return (self.task_evaluations + self.averaged_task_evaluations) * self.task_items

    @property
    def sampling_rounds(self) -> int:
        """Return the passes that sample one token for every text of a set. The prompt is read in the first of a set."""
        return self.sample_sets * self.sample_tokens if self.sample_texts else 0


def count_work(recipe: Recipe) -> Workload:
    """Count the work of a run from its recipe, and from its dataset where that is prepared."""
    evaluation, checkpoint = recipe.evaluation, recipe.checkpoint
    checkpoints = recipe.times_due(0, checkpoint.every)
    validations = recipe.times_due(0, evaluation.validation_every)
    tasks = recipe.times_due(0, evaluation.hellaswag_every) if evaluation.hellaswag_every else 0
    has_average = recipe.optimizer.average_steps > 0  # from the first step on
    return Workload(
        steps=recipe.run.max_steps,
        step_tokens=recipe.data.total_batch_tokens,
        full_steps=recipe.full_steps_left(0),
        validations=1 + validations,
        averaged_validations=validations if has_average else 0,
        validation_windows=validation_windows(recipe),
        block_size=recipe.model.block_size,
        task_evaluations=1 + tasks if evaluation.hellaswag_every else 0,
        averaged_task_evaluations=tasks if has_average else 0,
        task_items=task_items(recipe),
        sample_sets=recipe.times_due(0, evaluation.sample_every) if evaluation.sample_count else 0,
        sample_texts=evaluation.sample_count,
        sample_tokens=max(0, evaluation.sample_tokens - prompt_tokens(evaluation.sample_prompt, recipe.data.tokenizer)),
        checkpoints=checkpoints,
        waited_checkpoints=1 if checkpoint.background else checkpoints,
        checkpoint_bytes=checkpoint_bytes(recipe),
    )


def validation_windows(recipe: Recipe) -> int:
    """Return the windows of one validation: as the recipe asks, at most those of the validation split."""
    wanted = recipe.evaluation.validation_batches * recipe.evaluation.validation_batch_size
    try:
        shards = [shard.tokens for shard in read_manifest(recipe.data.directory).of_split("val")]
    except UserError:
        shards = [recipe.data.validation_tokens]
    return min(wanted, sum(max(0, tokens - 1) // recipe.model.block_size for tokens in shards))


def task_items(recipe: Recipe) -> int:
    """Return the HellaSwag items of one evaluation. A file of one's own that cannot be read counts as HellaSwag."""
    wanted, file = recipe.evaluation.hellaswag_items, recipe.evaluation.hellaswag_file
    available = HELLASWAG_ITEMS
    if file and recipe.evaluation.hellaswag_every:
        with contextlib.suppress(UserError):
            available = open_items(TASKS["hellaswag"], file).n_items
    return min(wanted, available) if wanted else available


def prompt_tokens(prompt: str, choice: str) -> int:
    """Return the tokens of a prompt, estimated where the tokenizer is missing."""
    try:
        return len(open_tokenizer(choice).encode(prompt))
    except UserError:
        return -(-len(prompt) // LETTERS_PER_TOKEN)
