"""Open a trained model: a run, a checkpoint, a Hugging Face directory, or a model on the hub."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regpt.base.errors import CheckpointError, UserError
from regpt.checkpoint import store
from regpt.data.shard_writer import FOLDER
from regpt.data.tokenizer import GPT2_TOKENIZER, Tokenizer
from regpt.distributed.dtensor import local_rows
from regpt.interop.pretrained import load_pretrained
from regpt.interop.sources import ModelSource, SourceKind, find_source, recipe_of_checkpoint, run_of_checkpoint
from regpt.model.gpt import GPT
from regpt.model.masks import NO_TOKEN
from regpt.optimizer.average import AVERAGE
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import load_resolved_recipe, override
from regpt.tokenization.chat_tokens import with_chat_tokens
from regpt.tokenization.opening import open_tokenizer, tokenizer_in
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
        """Whether the model's tokenizer is GPT-2's."""
        return self.tokenizer is GPT2_TOKENIZER

    @property
    def tokenizer_record(self) -> dict[str, Any]:
        """The record of the tokenizer, as in a dataset's manifest."""
        return self.tokenizer.record

    @property
    def tokenizer_folder(self) -> Path | None:
        """The folder with the files of the tokenizer; None: it is GPT-2's."""
        if self.has_gpt2_tokens:
            return None
        if self.pretrained is not None or self.run is None:
            return self.pretrained
        return self.run / FOLDER


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
        pretrained=path,
        exact_name=source.exact_name,
    )


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
    found = tokenizer_in(run) if run else open_tokenizer(recipe.data.tokenizer)
    if recipe.data.format == "conversations":
        found = with_chat_tokens(found)
    model.end_of_text = found.end_of_text if found.end_of_text is not None else NO_TOKEN
    name = f"{run.name} at step {step:,}" if run else recipe.name
    return LoadedModel(
        f"{name}, averaged" if averaged else name,
        model,
        recipe,
        found,
        run,
        step,
        averaged,
        recipe.tokens_after(step),
    )


def digest_of_weights(model: GPT) -> str:
    """Return the SHA-256 of all parameters, which identifies a model wherever it is stored."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
