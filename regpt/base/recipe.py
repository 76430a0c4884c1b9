"""A recipe: every setting of a run, typed and frozen, with what follows from it and what is wrong with it.

The names are those of the seed record and of the field (`n_layer`, `block_size`, `max_lr`, ...). Sizes of batches are
in tokens. Numbers that follow from others are properties and are never stored.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

SINKS = ("tensorboard", "wandb", "trackio")
GPT2_VOCABULARY = 50_257  # ids that GPT-2's tokenizer can give; `vocab_size` is padded beyond it


OnResume = Literal["free", "noted", "refused"]


def setting(default: Any, help: str, on_resume: OnResume = "refused") -> Any:
    """Declare a setting: its default, its line in `regpt recipe help`, and whether a resume may change it.

    "free": it says where and when to run, changes no result, and is not part of the recipe's digest.
    "noted": the run continues with the new value, and its journal records the change.
    "refused": the resume ends with an error.
    """
    return field(default=default, metadata={"help": help, "on_resume": on_resume})


@dataclass(frozen=True, kw_only=True)
class RunRecipe:
    seed: int = setting(1337, "of weights, data order and dropout")
    max_steps: int = setting(19_073, "optimizer steps", on_resume="noted")
    device: Literal["auto", "cpu", "cuda", "mps"] = setting(
        "auto", "auto: CUDA, else Apple MPS, else the CPU", on_resume="free"
    )
    precision: Literal["auto", "bfloat16", "float32"] = setting(
        "auto", "of matrix products; auto: bfloat16 where the hardware has it"
    )
    matmul_precision: Literal["highest", "high", "medium"] = setting("high", "of float32 products; high: TF32 on CUDA")
    compile: Literal["auto", "on", "off"] = setting("auto", "torch.compile; auto: on CUDA only")
    threads: int = setting(0, "of the CPU; 0: as many as there are cores", on_resume="free")
    deterministic: bool = setting(False, "only operations that give the same bits again; on a GPU slower")
    sinks: str = setting(
        "", "copies of the figures: tensorboard, wandb, trackio, or several with commas between", on_resume="free"
    )
    time_limit: str = setting(
        "", "hours:minutes:seconds after which the run saves and stops; empty: none", on_resume="free"
    )
    price_per_hour: float = setting(0.0, "of the machine, in USD; 0: no cost in the report", on_resume="free")
    parallel: Literal["ddp", "fsdp"] = setting(
        "ddp",
        "on several ranks: ddp: the whole model on each; fsdp: a share of it on each, for models beyond one card",
        on_resume="noted",
    )
    strict_sum: bool = setting(
        False,
        "with ddp: gradients are added in one order, the same bits on any number of ranks; slower, for proofs",
        on_resume="noted",
    )
    gradients_reduced: Literal["step", "micro-batch"] = setting(
        "step",
        "when ranks add them up; micro-batch: with fsdp, so that no rank ever holds all; more traffic",
        on_resume="noted",
    )
    activation_checkpointing: bool = setting(
        False, "blocks are computed again in the backward pass: less memory, a third more work", on_resume="noted"
    )
    rank_timeout: int = setting(600, "seconds that a rank waits for the others before it gives up", on_resume="free")

    @property
    def sink_names(self) -> list[str]:
        return [name.strip() for name in self.sinks.split(",") if name.strip()]

    @property
    def time_limit_seconds(self) -> float:
        """Infinity where there is no limit, or where it cannot be read."""
        words = self.time_limit.split(":")
        if len(words) != 3 or not all(word.isdecimal() for word in words):
            return math.inf
        hours, minutes, seconds = map(int, words)
        return 3600.0 * hours + 60 * minutes + seconds

    def problems(self) -> Iterator[str]:
        yield from at_least(self, 1, "max_steps", "rank_timeout")
        yield from at_least(self, 0, "seed", "threads", "price_per_hour")
        if self.parallel == "fsdp" and self.strict_sum:
            yield "run.strict_sum = true needs whole gradients on each rank, run.parallel = 'fsdp' has none; use ddp"
        if self.parallel == "ddp" and self.gradients_reduced == "micro-batch":
            yield "run.gradients_reduced = 'micro-batch' saves nothing with run.parallel = 'ddp'; use step, or fsdp"
        for name in self.sink_names:
            if name not in SINKS:
                yield f"run.sinks = '{self.sinks}': '{name}' is none of {', '.join(SINKS)}"
        if self.time_limit and not 0 < self.time_limit_seconds < math.inf:
            yield f"run.time_limit = '{self.time_limit}' is no time; write hours:minutes:seconds, as in 23:50:00"
        if self.seed >= 2**63:
            yield f"run.seed = {self.seed} is not below 2^63"


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    path: str = setting(
        "data/fineweb-edu-10BT", "directory of token shards; `regpt prepare` makes it", on_resume="free"
    )
    source: str = setting(
        "hub:HuggingFaceFW/fineweb-edu/sample/10BT",
        "where the text comes from: a file, a folder, 'stdlib' (the sources of Python's standard library),"
        " or 'hub:OWNER/NAME/FOLDER'",
        on_resume="free",
    )
    revision: str = setting(
        "", "of a data set on the hub: a commit, a tag or a branch; empty: main, as it is today", on_resume="free"
    )
    text_column: str = setting("text", "of JSON lines and parquet files", on_resume="free")
    validation_tokens: int = setting(100_000_000, "the first so many tokens are the validation split", on_resume="free")
    shard_tokens: int = setting(100_000_000, "in one file", on_resume="free")
    tokenizer_backend: Literal["tiktoken", "gigatoken"] = setting(
        "tiktoken", "gigatoken: the same ids, faster; pip install 'regpt[fast]'", on_resume="free"
    )
    workers: int = setting(
        0, "processes that prepare; 0: as many as there are cores, fewer for little text", on_resume="free"
    )
    keep_raw: bool = setting(
        False, "keep what was fetched from the hub, in a folder beside data.path that ends in -raw", on_resume="free"
    )
    order: Literal["shuffled", "sequential"] = setting(
        "shuffled",
        "shuffled: all windows of all shards, anew each epoch; sequential: as they stand in the files",
    )
    micro_batch: int = setting(32, "sequences in one forward pass on one device", on_resume="noted")
    total_batch_tokens: int = setting(524_288, "in one optimizer step, over all devices")

    @property
    def directory(self) -> Path:
        """Of the shards; a leading ~ is the home folder."""
        return Path(self.path).expanduser()

    def problems(self) -> Iterator[str]:
        yield from at_least(self, 1, "micro_batch", "total_batch_tokens", "validation_tokens", "shard_tokens")
        yield from at_least(self, 0, "workers")
        for name in ("path", "source"):
            if not getattr(self, name).strip():
                yield f"data.{name} is empty; name one"
            elif problem := path_problem(getattr(self, name)):
                yield f"data.{name} = {getattr(self, name)!r} {problem}"
        if Path(self.path).name in ("", "..") and self.path.strip():
            yield f"data.path = '{self.path}' is no folder of its own; name one below it"


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    n_layer: int = setting(12, "transformer blocks")
    n_head: int = setting(12, "attention heads")
    n_embd: int = setting(768, "width of the residual stream")
    block_size: int = setting(1024, "tokens the model sees at once")
    vocab_size: int = setting(50_304, "rows of the embedding: GPT-2's 50,257, padded to a multiple of 64 or 128")
    positions: Literal["learned", "rope"] = setting("rope", "learned table, or rotary embedding of queries and keys")
    rope_theta: float = setting(10_000.0, "base of the rotary wavelengths")
    activation: Literal["gelu", "swiglu"] = setting("swiglu", "gelu: tanh form, as GPT-2; swiglu: gated, as Llama")
    mlp_hidden: int = setting(2048, "width inside the MLP; for equal size, swiglu needs two thirds of gelu's")
    normalization: Literal["layernorm", "rmsnorm"] = setting("rmsnorm", "before attention, before the MLP, at the end")
    norm_eps: float = setting(1e-5, "added to the variance")
    bias: bool = setting(False, "in linear layers and LayerNorm")
    tied_head: bool = setting(True, "the head's weight is the token embedding's")
    dropout: float = setting(0.0, "after the embedding, in attention, and on what joins the residual stream")
    init_std: float = setting(0.02, "of initial weights; residual projections have init_std x (2 n_layer)^-0.5")

    def problems(self) -> Iterator[str]:
        yield from at_least(self, 1, "n_layer", "n_head", "n_embd", "block_size", "mlp_hidden")
        if self.vocab_size < GPT2_VOCABULARY:
            yield f"model.vocab_size = {self.vocab_size} cannot hold GPT-2's {GPT2_VOCABULARY} tokens"
        if self.n_head > 0 and self.n_embd % self.n_head:
            yield f"model.n_embd = {self.n_embd} does not divide by model.n_head = {self.n_head}"
        elif self.n_head > 0 and self.positions == "rope" and self.n_embd // self.n_head % 2:
            yield (
                f"model.positions = 'rope' turns pairs of numbers, but a head is {self.n_embd // self.n_head} wide"
                f" (model.n_embd = {self.n_embd} over model.n_head = {self.n_head}); choose an even width"
            )
        yield from above_zero(self, "rope_theta", "norm_eps", "init_std")
        if not 0.0 <= self.dropout < 1.0:
            yield f"model.dropout = {self.dropout} is not in [0, 1)"

    @property
    def matmul_parameters(self) -> int:
        """Weights that take part in a matrix product. The head's product counts, tied or not; lookups are free."""
        attention = 4 * self.n_embd**2
        mlp = (3 if self.activation == "swiglu" else 2) * self.n_embd * self.mlp_hidden
        return self.n_layer * (attention + mlp) + self.vocab_size * self.n_embd

    @property
    def parameters(self) -> int:
        """All parameters of the model."""
        norms = (2 * self.n_layer + 1) * self.n_embd * (2 if self.bias and self.normalization == "layernorm" else 1)
        expanded = self.mlp_hidden * (2 if self.activation == "swiglu" else 1)
        biases = self.n_layer * (5 * self.n_embd + expanded) if self.bias else 0
        tables = self.block_size * self.n_embd if self.positions == "learned" else 0
        tables += 0 if self.tied_head else self.vocab_size * self.n_embd
        return self.matmul_parameters + norms + biases + tables

    @property
    def flops_per_token(self) -> int:
        """Floating-point operations of one training step, forward and backward, for each token.

        6 for each weight in a matrix product and 12 x layers x width x context for attention: the convention of PaLM
        (arXiv 2204.02311, appendix B) and nanoGPT, which does not subtract what the causal mask skips.
        """
        return 6 * self.matmul_parameters + 12 * self.n_layer * self.n_embd * self.block_size


@dataclass(frozen=True, kw_only=True)
class OptimizerRecipe:
    max_lr: float = setting(6e-4, "learning rate after the warm-up")
    min_lr: float = setting(6e-5, "learning rate at the end of the cosine")
    warmup_steps: int = setting(715, "of linear rise to max_lr")
    beta1: float = setting(0.9, "AdamW: decay of the mean of gradients")
    beta2: float = setting(0.95, "AdamW: decay of the mean of squared gradients")
    eps: float = setting(1e-8, "AdamW: added to the denominator")
    weight_decay: float = setting(0.1, "on tensors of two or more dimensions only")
    grad_clip: float = setting(1.0, "largest norm of all gradients together")

    def problems(self) -> Iterator[str]:
        yield from above_zero(self, "max_lr", "eps", "grad_clip")
        yield from at_least(self, 0, "min_lr", "warmup_steps", "weight_decay")
        if self.min_lr > self.max_lr:
            yield f"optimizer.min_lr = {self.min_lr} is above optimizer.max_lr = {self.max_lr}"
        for name in ("beta1", "beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                yield f"optimizer.{name} = {getattr(self, name)} is not in [0, 1)"


@dataclass(frozen=True, kw_only=True)
class EvaluationRecipe:
    validation_every: int = setting(250, "steps; 0: at the start and the end only", on_resume="noted")
    validation_batches: int = setting(20, "always the same, from the start of the validation split", on_resume="noted")
    validation_batch_size: int = setting(
        32, "sequences in a validation batch, whatever the micro-batch", on_resume="noted"
    )
    hellaswag_every: int = setting(250, "steps, the start and the end as well; 0: never", on_resume="noted")
    hellaswag_items: int = setting(
        0, "a fixed choice of so many, of each kind in proportion; 0: all 10,042", on_resume="noted"
    )
    hellaswag_file: str = setting(
        "", "its validation rows (.jsonl, .parquet, .arrow); '': data package, then hub", on_resume="free"
    )
    sample_every: int = setting(250, "steps; 0: at the end only", on_resume="noted")
    sample_count: int = setting(4, "continuations; 0: no samples", on_resume="noted")
    sample_tokens: int = setting(32, "of a continuation, the prompt included", on_resume="noted")
    sample_prompt: str = setting(
        "Hello, I'm a language model,", "that every continuation begins with", on_resume="noted"
    )
    sample_top_k: int = setting(50, "tokens to choose the next one from", on_resume="noted")
    sample_seed: int = setting(42, "of the first continuation's choices; each further one adds 1", on_resume="noted")

    def problems(self) -> Iterator[str]:
        yield from at_least(self, 0, "validation_every", "hellaswag_every", "sample_every", "sample_count")
        yield from at_least(self, 0, "hellaswag_items", "sample_seed")
        if problem := path_problem(self.hellaswag_file):
            yield f"evaluation.hellaswag_file = {self.hellaswag_file!r} {problem}"
        yield from at_least(self, 1, "validation_batches", "validation_batch_size", "sample_tokens", "sample_top_k")
        if self.sample_seed >= 2**62:
            yield f"evaluation.sample_seed = {self.sample_seed} is not below 2^62"
        if not self.sample_prompt:
            yield "evaluation.sample_prompt is empty; a sample needs a beginning"


@dataclass(frozen=True, kw_only=True)
class CheckpointRecipe:
    every: int = setting(5_000, "steps; the last step is always saved; 0: only the last", on_resume="free")
    keep_last: int = setting(0, "the newest so many are kept; 0: all", on_resume="free")
    keep_every: int = setting(
        0, "steps; with keep_last, those at its multiples are kept as well; 0: none", on_resume="free"
    )
    keep_best: bool = setting(
        True, "with keep_last, the one with the lowest validation loss is kept as well", on_resume="free"
    )
    background: bool = setting(True, "write them while the training goes on, from a copy in memory", on_resume="free")

    def problems(self) -> Iterator[str]:
        yield from at_least(self, 0, "every", "keep_last", "keep_every")


@dataclass(frozen=True, kw_only=True)
class GuardRecipe:
    """What is done about a step whose loss or gradient norm is no number, or far above what was usual."""

    window: int = setting(128, "accepted steps that say what is usual")
    loss_deviations: float = setting(
        20.0, "above the window's median a loss is a spike, in robust standard deviations; 0: never"
    )
    norm_deviations: float = setting(0.0, "the same for the norm of the gradients, before clipping; 0: never")
    skips: int = setting(3, "bad steps in a row that are passed over, without an update")
    returns: int = setting(1, "times that the run then goes back to a checkpoint and leaves those batches out")

    def problems(self) -> Iterator[str]:
        yield from at_least(self, 0, "loss_deviations", "norm_deviations", "skips", "returns")
        if self.window < 8:
            yield f"guard.window = {self.window} is below 8, too few steps to say what is usual"


@dataclass(frozen=True, kw_only=True)
class PublishedRecipe:
    """What somebody's written record says came out of this recipe. Nothing here changes a run."""

    origin: str = setting("", "where the figures stand", on_resume="free")
    hardware: str = setting("", "that the recorded run used", on_resume="free")
    hours: float = setting(0.0, "of training; 0: not recorded", on_resume="free")
    cost_usd: float = setting(-1.0, "of the recorded run; negative: not recorded", on_resume="free")
    validation_loss: float = setting(0.0, "nats per token; 0: not recorded", on_resume="free")
    hellaswag: float = setting(0.0, "accuracy, 0 to 1; 0: not recorded", on_resume="free")

    def problems(self) -> Iterator[str]:
        yield from at_least(self, 0, "hours", "validation_loss")
        if not 0.0 <= self.hellaswag <= 1.0:
            yield f"published.hellaswag = {self.hellaswag} is not an accuracy between 0 and 1"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a run. `name` is the file's, without .toml."""

    name: str
    run: RunRecipe = RunRecipe()
    data: DataRecipe = DataRecipe()
    model: ModelRecipe = ModelRecipe()
    optimizer: OptimizerRecipe = OptimizerRecipe()
    evaluation: EvaluationRecipe = EvaluationRecipe()
    checkpoint: CheckpointRecipe = CheckpointRecipe()
    guard: GuardRecipe = GuardRecipe()
    published: PublishedRecipe = PublishedRecipe()

    def problems(self) -> Iterator[str]:
        """Everything that is wrong, a line each, with the numbers that do not fit together."""
        for section in SECTIONS:
            values = getattr(self, section)
            infinite = [
                f for f in fields(values) if isinstance(v := getattr(values, f.name), float) and not math.isfinite(v)
            ]
            for f in infinite:
                yield f"{section}.{f.name} = {getattr(values, f.name)} is not a finite number"
            if not infinite:
                yield from values.problems()
        yield from self.batch_problems()

    def batch_problems(self, ranks: int = 1) -> Iterator[str]:
        """Whether total_batch_tokens divides into micro-batches on so many ranks; if not, what would divide."""
        B, T, total = self.data.micro_batch, self.model.block_size, self.data.total_batch_tokens
        if min(B, T, total) < 1 or total % (B * T * ranks) == 0:
            return
        on_ranks = f" x {ranks} ranks" if ranks > 1 else ""
        yield (
            f"data.total_batch_tokens = {total} does not divide by data.micro_batch x model.block_size{on_ranks}"
            f" = {B} x {T}{on_ranks} = {B * T * ranks}; "
        ) + what_would_divide(B, T, total, ranks)

    def accumulation_steps(self, ranks: int = 1) -> int:
        """Micro-batches that each rank adds up for one optimizer step."""
        return self.data.total_batch_tokens // (self.data.micro_batch * self.model.block_size * ranks)

    def is_due(self, step: int, every: int) -> bool:
        """Whether something happens after so many steps: at multiples of `every`, unless that is 0, and at the end."""
        return step == self.run.max_steps or (every > 0 and step > 0 and step % every == 0)

    def times_due(self, after: int, every: int) -> int:
        """At how many of the steps after `after` something is due."""
        last = self.run.max_steps
        if after >= last:
            return 0
        return ((last - 1) // every - after // every if every else 0) + 1

    def tokens_after(self, step: int) -> int:
        """Tokens seen in training by then."""
        return step * self.data.total_batch_tokens

    @property
    def batch_windows(self) -> int:
        """Sequences in one optimizer step."""
        return self.data.total_batch_tokens // self.model.block_size

    @property
    def total_tokens(self) -> int:
        """Tokens seen in training by the last step."""
        return self.tokens_after(self.run.max_steps)

    @property
    def warmup_tokens(self) -> int:
        """Tokens seen while the learning rate rises."""
        return self.optimizer.warmup_steps * self.data.total_batch_tokens


SECTIONS = tuple(f.name for f in fields(Recipe) if f.name != "name")


def what_would_divide(B: int, T: int, total: int, ranks: int) -> str:
    """The remedy for a batch that does not divide, with numbers that can be pasted."""
    remedies = []
    if total % (T * ranks) == 0:
        remedies.append(f"data.micro_batch = {nearest_divisors(total // (T * ranks), B)}")
    if ranks > 1 and total % (B * T) == 0:
        fewer = nearest_divisors(total // (B * T), ranks)
        remedies.append(f"{fewer} rank{'s' if fewer != '1' else ''}")
    if not remedies:
        remedies.append(f"data.total_batch_tokens = {-(-total // (B * T * ranks)) * B * T * ranks}")
    return f"{', or '.join(remedies)} would"


def nearest_divisors(number: int, to: int) -> str:
    """The three divisors of a number that lie nearest, as in '2 or 4 or 8'."""
    divisors = [n for n in range(1, number + 1) if number % n == 0]
    return " or ".join(map(str, sorted(sorted(divisors, key=lambda n: abs(n - to))[:3])))


def path_problem(text: str) -> str:
    """Why a text is no path on any system; nothing if it can be one."""
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        return "holds characters that no path may have"
    try:
        Path(text).expanduser()
    except RuntimeError:
        return "names the home folder of a user that does not exist"
    return ""


def at_least(values: Any, least: int, *names: str) -> Iterator[str]:
    section = type(values).__name__.removesuffix("Recipe").lower()
    for name in names:
        if getattr(values, name) < least:
            yield f"{section}.{name} = {getattr(values, name)} is below {least}"


def above_zero(values: Any, *names: str) -> Iterator[str]:
    section = type(values).__name__.removesuffix("Recipe").lower()
    for name in names:
        if not getattr(values, name) > 0:
            yield f"{section}.{name} = {getattr(values, name)} is not above 0"
