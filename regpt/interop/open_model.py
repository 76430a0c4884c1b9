"""Open a trained model: a run, a checkpoint, a Hugging Face directory, or a model on the hub."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regpt.base.errors import CheckpointError, UserError
from regpt.base.files import sha256_of_file
from regpt.checkpoint import store
from regpt.data.shards import gpt2_tokenizer_record
from regpt.data.tokenizer import GPT2_TOKENIZER, Tokenizer
from regpt.distributed.dtensor import local_rows
from regpt.interop.pretrained import load_pretrained
from regpt.interop.sources import ModelSource, SourceKind, find_source, recipe_of_checkpoint, run_of_checkpoint
from regpt.model.gpt import GPT
from regpt.optimizer.average import AVERAGE
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import load_resolved_recipe, override
from regpt.tracking.layout import RunPaths


@dataclass(frozen=True)
class LoadedModel:
    """A model on the CPU, in float32 and evaluation mode, with its recipe, tokenizer and origin."""

    name: str
    model: GPT
    recipe: Recipe  # with the overrides of the command line
    tokenizer: Tokenizer
    run: Path | None = None
    step: int | None = None
    averaged: bool = False  # whether the weights are the averaged ones of the run
    tokens: int | None = None  # seen in training
    tokenizer_record: dict[str, Any] = field(default_factory=gpt2_tokenizer_record)  # as in a dataset's manifest
    pretrained: Path | None = None  # the Hugging Face directory that it is from
    exact_name: str = ""  # that finds the same weights again: a path, or hub:OWNER/NAME@COMMIT

    @torch.no_grad()
    def __call__(self, tokens: Tensor | NDArray[np.integer] | Sequence[Sequence[int]]) -> Tensor:
        """Return the logits of the token after each one, without gradient.  (B, T) -> (B, T, V)"""
        ids = tokens if isinstance(tokens, Tensor) else torch.from_numpy(np.array(tokens, dtype=np.int64))
        logits: Tensor = self.model(ids)
        return logits

    @property
    def has_gpt2_tokens(self) -> bool:
        """Whether the model uses GPT-2's tokens, as regpt's datasets do."""
        return self.tokenizer is GPT2_TOKENIZER


def load_model(run: str | PathLike[str]) -> GPT:
    """Load the newest valid checkpoint of a run; return the model in float32 and evaluation mode."""
    run = Path(run)
    return load_checkpoint_model(store.newest_valid(run), load_resolved_recipe(RunPaths(run).recipe))


def load_checkpoint_model(path: Path, recipe: Recipe) -> GPT:
    """Load the weights of a checkpoint; return the model in float32 and evaluation mode."""
    model = GPT(recipe.model)
    store.load_weights(path, model)
    return model.eval()


def open_model(
    where: str | PathLike[str],
    root: Path,
    overrides: Sequence[str] = (),
    step: int | None = None,
    averaged: bool = False,
) -> LoadedModel:
    """Open a model: a run by name or directory, a checkpoint, a Hugging Face directory, or hub:OWNER/NAME[@REVISION].

    Args:
        where: the name or path
        root: directory of runs
        step: of a run, the checkpoint after this step; None: the newest valid one
        overrides: settings such as `run.device=cpu`
        averaged: use the averaged weights of a checkpoint (optimizer.average_steps) instead of the last ones

    Raises UserError for an override of model.* and if there is no such model or step, CheckpointError for a damaged
    one and for one without averaged weights.
    """
    if any(word.startswith("model.") for word in overrides):
        raise UserError(
            f"{' '.join(overrides)}: model.* cannot be overridden for a trained model", "remove those settings"
        )
    source = find_source(where, root, step, averaged)
    if source.kind is SourceKind.PRETRAINED:
        return open_pretrained(source, overrides)
    return replace(open_checkpoint(source.path, overrides, averaged), exact_name=source.exact_name)


def open_pretrained(source: ModelSource, overrides: Sequence[str]) -> LoadedModel:
    """Open a Hugging Face directory."""
    path = source.path
    model, tokenizer = load_pretrained(path)
    recipe = replace(override(Recipe(name=source.name), overrides), model=model.recipe)
    return LoadedModel(
        recipe.name,
        model,
        recipe,
        tokenizer,
        tokenizer_record=make_tokenizer_record(path, tokenizer),
        pretrained=path,
        exact_name=source.exact_name,
    )


def make_tokenizer_record(directory: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the record of a tokenizer; one that is not GPT-2's has the SHA-256 of its tokenizer.json."""
    if tokenizer is GPT2_TOKENIZER:
        return gpt2_tokenizer_record()
    return {"name": "its own", "vocabulary_sha256": sha256_of_file(directory / "tokenizer.json")}


@torch.no_grad()
def average_weights(path: Path, model: GPT, share: float) -> None:
    """Replace the last weights of a model by the averaged ones of its checkpoint, as a validation does.

    Raises CheckpointError where it has none.
    """
    saved = store.saved_tensors(path, "optimizer")
    for name, parameter in model.named_parameters():
        if (key := f"{name}/{AVERAGE}") not in saved.shapes:
            raise CheckpointError(
                f"{path}: has no averaged weights (optimizer.average_steps = 0)", "leave out --averaged"
            )
        parameter.lerp_(saved.rows(key, *local_rows(parameter)), share)


def open_checkpoint(path: Path, overrides: Sequence[str], averaged: bool = False) -> LoadedModel:
    """Open a checkpoint, inside its run or copied elsewhere, after comparing its files with their hashes."""
    for fault in store.find_faults(path):
        raise CheckpointError(f"{path}: {fault}", "choose another checkpoint")
    run = run_of_checkpoint(path)
    recipe = recipe_of_checkpoint(path)
    recipe = override(recipe, overrides)
    step = int(store.load_state(path)["step"])
    model = load_checkpoint_model(path, recipe)
    if averaged:
        average_weights(path, model, recipe.optimizer.average_share)
    name = f"{run.name} at step {step:,}" if run else recipe.name
    return LoadedModel(
        f"{name}, averaged" if averaged else name,
        model,
        recipe,
        GPT2_TOKENIZER,
        run,
        step,
        averaged,
        recipe.tokens_after(step),
    )
