"""Differences between a run and the original GPT-2, and between two recipes."""

from dataclasses import dataclass

from regpt.base.format import scientific
from regpt.recipe.architecture import ModelRecipe
from regpt.recipe.differences import differences
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import toml_value
from regpt.reporting.improvements import improvements
from regpt.tracking.run import Run

LEARNING_SECTIONS = ("data", "model", "optimizer", "guard")  # of a recipe, that affect what is learned
# The names in the owner's training records: (as a part, as a difference, as a description).
CHOICES = {
    "rope": ("RoPE Embeddings", "RoPE", "rotary position embedding of queries and keys"),
    "learned": ("Learned Embeddings", "Learned Embeddings", "a learned table of positions"),
    "swiglu": ("SwiGLU Activation", "SwiGLU", "a gated activation"),
    "gelu": ("GELU Activation", "GELU", "GELU in its tanh form"),
    "relu2": ("Squared ReLU", "Squared ReLU", "the square of ReLU"),
    "rmsnorm": ("RMSNorm", "RMSNorm", "division by the root mean square, without subtracting the mean"),
    "layernorm": ("LayerNorm", "LayerNorm", "subtraction of the mean and division by the standard deviation"),
}


@dataclass(frozen=True)
class Change:
    """A difference between this run's recipe and another one."""

    factor: str  # name in the list of contributing factors
    name: str  # name in the list of differences
    words: str
    settings: tuple[str, ...]
    part: bool  # whether it is a change of the model or of the training's length, listed as a key improvement
    matters: bool = True  # whether it affects what is learned; the micro-batch does not


def differences_from_gpt2(run: Run) -> list[str]:
    """List the differences from GPT-2 124M as OpenAI describes it, from the recipe and the device of the run."""
    model, recipe, device = run.recipe.model, run.recipe, run.environment.device
    size = (model.n_layer, model.n_embd, model.n_head, model.block_size)
    compiled = ", torch.compile" if device.compiled else ""
    torch = run.environment.packages.torch
    found = {
        "**Flash Attention:** probabilities of a block at a time, where the device has a kernel for it, instead of"
        " separate products and softmax": True,
        "**AdamW:** decoupled weight decay, instead of Adam": recipe.optimizer.kind == "adamw",
        "**Muon** for the matrices inside blocks and AdamW for the rest, instead of Adam": recipe.optimizer.kind
        == "muon",
        f"**bfloat16:** {device.precision} autocast in matrix products": device.precision == "bfloat16",
        f"**Vocab Padding:** {model.vocab_size:,} rows instead of 50,257": model.vocab_size != 50_257,
        f"**Modern PyTorch:** torch {torch}, fused AdamW{compiled}": True,
        f"**RoPE Embeddings:** {CHOICES['rope'][2]} instead of a learned table": model.positions == "rope",
        f"**{CHOICES[model.activation][0]}:** {CHOICES[model.activation][2]} instead of GELU": model.activation
        != "gelu",
        "**RMSNorm** instead of LayerNorm": model.normalization == "rmsnorm",
        "**No biases** in linear layers and norms": not model.bias,
        f"**Dropout:** {model.dropout:g} instead of 0.1": model.dropout != 0.1,
        "**Untied head**": not model.tied_head,
        f"**Improvements:** {', '.join(improvements(recipe))}": bool(improvements(recipe)),
        "**Size:** {} layers of width {} with {} heads and {:,} positions instead of 12, 768, 12 and 1,024".format(
            *size
        ): size != (12, 768, 12, 1024),
        f"**Data:** {run.environment.data.source.description} instead of WebText": True,
        f"**Batch:** {recipe.data.total_batch_tokens:,} tokens instead of 512 × 1,024": recipe.data.total_batch_tokens
        != 524_288,
    }
    return [line for line, holds in found.items() if holds]


def changes(ours: Recipe, theirs: Recipe) -> list[Change]:
    """Return the differences of two recipes, except settings that affect neither learning nor speed."""
    found = [*training_changes(ours, theirs), *model_changes(ours.model, theirs.model)]
    named = {setting for change in found for setting in change.settings}
    rest = [row for row in rows_of_differences(ours, theirs) if row[0] not in named and row[0] != "data.path"]
    for setting, our, their, _ in rest:
        if setting.split(".")[0] in LEARNING_SECTIONS or setting == "run.seed":
            found.append(Change(f"`{setting}`", f"`{setting}`", f"{our} vs {their}", (setting,), part=False))
    return found


def training_changes(ours: Recipe, theirs: Recipe) -> list[Change]:
    found = []
    length, its_length = ours.run.max_steps, theirs.run.max_steps
    tokens = ours.total_tokens / theirs.total_tokens
    if tokens != 1 or length != its_length:
        words = f"{length:,} steps vs {its_length:,} steps ({ours.total_tokens:,} vs {theirs.total_tokens:,} tokens)"
        name = "Extended Training" if tokens > 1 else "Shortened Training" if tokens < 1 else "Steps"
        settings = ("run.max_steps", "data.total_batch_tokens")
        found.append(
            Change(name, f"{tokens:.3g}x Training Duration" if tokens >= 0.01 else name, words, settings, True)
        )
    rate, its_rate = ours.optimizer.max_lr, theirs.optimizer.max_lr
    if rate != its_rate:
        name = f"{'Higher' if rate > its_rate else 'Lower'} Learning Rate"
        words = f"{scientific(rate)} vs {scientific(its_rate)} ({rate / its_rate:.3g}x)"
        found.append(Change(name, name, words, ("optimizer.max_lr", "optimizer.min_lr"), False))
    warmup, its_warmup = ours.optimizer.warmup_steps, theirs.optimizer.warmup_steps
    if warmup != its_warmup:
        name = f"{'Longer' if warmup > its_warmup else 'Shorter'} Warmup"
        words = f"{warmup:,} steps vs {its_warmup:,} steps"
        found.append(Change(name, name, words, ("optimizer.warmup_steps",), False))
    micro, its_micro = ours.data.micro_batch, theirs.data.micro_batch
    if micro != its_micro:
        name = f"{'Larger' if micro > its_micro else 'Smaller'} Micro-batch"
        words = f"{micro} vs {its_micro} (speed and memory; the batch of a step is the same)"
        found.append(Change(name, name, words, ("data.micro_batch",), False, matters=False))
    if ours.data.order != theirs.data.order:
        name = {"shuffled": "Global Shuffling", "sequential": "No Shuffling"}[ours.data.order]
        words = f"windows {ours.data.order} vs {theirs.data.order}"
        found.append(Change(name, name, words, ("data.order",), False))
    return found


def model_changes(ours: ModelRecipe, theirs: ModelRecipe) -> list[Change]:
    found = []
    for setting in ("positions", "activation", "normalization"):
        our, their = getattr(ours, setting), getattr(theirs, setting)
        if our == their:
            continue
        factor, short, words = CHOICES[our]
        settings = {
            "activation": ("model.activation", "model.mlp_hidden"),
            "normalization": ("model.normalization",),
            "positions": ("model.positions", "model.rope_theta"),
        }[setting]
        of = f", hidden width {ours.mlp_hidden:,} vs {theirs.mlp_hidden:,}" if setting == "activation" else ""
        name = f"{short} instead of {CHOICES[their][1]}"
        found.append(Change(factor, name, f"{words}, instead of {CHOICES[their][2]}{of}", settings, True))
    if ours.bias != theirs.bias:
        name = "Biases" if ours.bias else "No Biases"
        found.append(Change(name, name, "in linear layers and norms", ("model.bias",), True))
    return found


def one_change(change: Change, ours: Recipe, theirs: Recipe) -> str:
    """Return the change as settings of a command line."""
    found = [(setting, our) for setting, our, _ in differences(ours, theirs) if setting in change.settings]
    return " ".join(f"{setting}={toml_value(our).strip(chr(34))}" for setting, our in found)


def rows_of_differences(ours: Recipe, theirs: Recipe) -> list[tuple[str, str, str, str]]:
    """Return the settings that differ: (setting, ours, theirs, ratio of numbers)."""
    rows = []
    for setting, our, their in differences(ours, theirs):
        numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (our, their))
        rows.append((setting, str(our), str(their), f"× {our / their:.3g}" if numbers and our and their else ""))
    return rows
