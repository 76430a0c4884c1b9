"""Old names of recipes, settings and devices, which still work; names in other programs, which get a suggestion."""

import warnings
from typing import Any

from regpt.base.errors import Problem

RECIPE_ALIASES = {"gpt2-230126": "gpt2-classic", "gpt2-050226": "gpt2-modern"}
SETTING_ALIASES = {"guard.skips": "guard.max_skips", "guard.returns": "guard.max_rollbacks"}
OTHER_NAMES = {  # key in another program, such as nanoGPT or llm.c -> our setting
    "lr": "optimizer.max_lr",
    "learning_rate": "optimizer.max_lr",
    "warmup_iters": "optimizer.warmup_steps",
    "wd": "optimizer.weight_decay",
    "batch_size": "data.micro_batch",
    "total_batch_size": "data.total_batch_tokens",
    "dataset": "data.path",
    "max_iters": "run.max_steps",
    "num_iterations": "run.max_steps",
    "steps": "run.max_steps",
    "dtype": "run.precision",
    "depth": "model.n_layer",
    "num_layers": "model.n_layer",
    "num_heads": "model.n_head",
    "hidden_size": "model.n_embd",
    "context_length": "model.block_size",
    "sequence_length": "model.block_size",
    "eval_interval": "evaluation.validation_every",
    "eval_iters": "evaluation.validation_batches",
}
OLD_SETTINGS = {new: old for old, new in SETTING_ALIASES.items()}


class RenamedSetting(UserWarning):
    """A user wrote a setting under its old name. The commands print it as a note."""


def current_recipe(name: str) -> str:
    """Return the current name of a shipped recipe; other names are returned as they are."""
    return RECIPE_ALIASES.get(name, name)


def current_device(name: str) -> str:
    """Return the name of a device as this version writes it: earlier ones wrote '1 threads' for a CPU."""
    return f"{name.removesuffix(', 1 threads')}, 1 thread" if name.endswith(", 1 threads") else name


def current_setting(name: str, *, warn: bool) -> str:
    """Return the current name of the setting 'section.key'; with `warn`, issue RenamedSetting for an old one."""
    if warn and name in SETTING_ALIASES:
        warnings.warn(f"{name} is now {SETTING_ALIASES[name]}", RenamedSetting, stacklevel=2)
    return SETTING_ALIASES.get(name, name)


def rename_settings(tables: dict[str, Any], *, warn: bool = False) -> list[Problem]:
    """Replace old setting names in the tables of a recipe; return a problem for each that has both names."""
    problems = []
    for old, new in SETTING_ALIASES.items():
        section, _, key = old.partition(".")
        table = tables.get(section)
        if not isinstance(table, dict) or key not in table:
            continue
        new_key = current_setting(old, warn=warn).partition(".")[2]
        if new_key in table:
            problems.append(Problem(new, f"{old} and {new} are one setting; remove {old}"))
        table.setdefault(new_key, table.pop(key))
    return problems
