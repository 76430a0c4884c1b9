"""Start a run from the weights of a model (`run.init_from`): recipe, first checkpoint, and record of the origin.

The weights become the checkpoint of step 0, so that the run never needs its source again.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regpt.base.errors import Problem, RecipeError, UserError
from regpt.checkpoint import store
from regpt.checkpoint.snapshot import Snapshot, named_weights
from regpt.data.shards import Manifest
from regpt.interop.open_model import LoadedModel, digest_of_weights
from regpt.interop.sources import find_source, shape_of, tokenizer_setting
from regpt.recipe.architecture import ModelRecipe
from regpt.recipe.recipe import Recipe
from regpt.recipe.vocabulary import padded_size, tokenizer_size
from regpt.tokenization.chat_tokens import CHAT_TOKENS, with_chat_tokens
from regpt.tracking.environment import Origin

# Settings of training, which the run's recipe decides. The others describe the model and come with its weights.
OF_TRAINING = ("dropout", "z_loss", "expert_balance_rate")
VOCABULARY_ROWS = ("token_embedding.weight", "head.weight", "shortcuts.value_embeddings.")


def with_source_model(recipe: Recipe, root: Path) -> Recipe:
    """Return a recipe whose model is that of `run.init_from`; `root` is the folder of runs.

    So is the tokenizer with which a missing dataset is prepared, unless the user gave another one. Raises UserError if
    there is no such model, RecipeError for settings that the user gave and that differ from it.
    """
    if not recipe.run.init_from:
        return recipe
    source = find_source(recipe.run.init_from, root, weights=False)
    model = model_of_run(recipe, shape_of(source), source.exact_name)
    found = replace(recipe, model=model, run=replace(recipe.run, init_from=source.exact_name))
    if not (recipe.given and "data.tokenizer" in recipe.given.anywhere):
        found = replace(found, data=replace(found.data, tokenizer=tokenizer_setting(source)))
    found = with_chat_rows(found)
    if problems := [*found.problems(), *found.shape_problems()]:
        raise RecipeError(f"{recipe.name} with the model of {source.exact_name}", problems)
    return found


def with_chat_rows(recipe: Recipe) -> Recipe:
    """Return the recipe of a chat with rows for the tokens around messages, if its model has too few."""
    tokens = tokenizer_size(recipe.data.tokenizer)
    if recipe.data.format == "text" or tokens is None or tokens + CHAT_TOKENS <= recipe.model.vocab_size:
        return recipe
    return replace(recipe, model=replace(recipe.model, vocab_size=padded_size(tokens + CHAT_TOKENS)))


def model_of_run(recipe: Recipe, source: ModelRecipe, where: str) -> ModelRecipe:
    """Return the model of a run that starts from weights: the source's, with the recipe's settings of training.

    The block is the shorter one of recipe and source, unless the user gave its length. The vocabulary has the source's
    rows, or more if the user asked for more.
    """
    given = recipe.given.anywhere if recipe.given else frozenset()
    asked, block_size = recipe.model, min(recipe.model.block_size, source.block_size)
    if "model.block_size" in given and source.positions == "rope":
        block_size = asked.block_size
    model = replace(source, block_size=block_size, **{name: getattr(asked, name) for name in OF_TRAINING})
    if "model.vocab_size" in given and asked.vocab_size > source.vocab_size:
        model = replace(model, vocab_size=asked.vocab_size)
    if "model.document_mask" in given:
        model = replace(model, document_mask=asked.document_mask)
    names = [name.removeprefix("model.") for name in sorted(given) if name.startswith("model.")]
    unlike = [name for name in names if getattr(asked, name) != getattr(model, name)]
    if unlike:
        problems = [
            Problem(
                f"model.{name}",
                f"model.{name} = {getattr(asked, name)!r}, but {where} has {getattr(source, name)!r}; leave it out,"
                " since the shape comes with the weights",
            )
            for name in unlike
        ]
        raise RecipeError(recipe.name, problems)
    return model


def check_tokenizer(opened: LoadedModel, manifest: Manifest, recipe: Recipe) -> None:
    """Raise UserError if the dataset was made with another tokenizer than the model.

    A dataset of conversations may add the tokens around messages.
    """
    tokenizer = with_chat_tokens(opened.tokenizer) if manifest.row_tokens else opened.tokenizer
    ours, theirs = tokenizer.record, manifest.tokenizer
    if ours["vocabulary_sha256"] != theirs["vocabulary_sha256"]:
        raise UserError(
            f"run.init_from = '{recipe.run.init_from}' has the tokenizer {label(ours)}, the dataset at data.path ="
            f" '{recipe.data.path}' has {label(theirs)}",
            f"prepare the text with the model's: data.tokenizer={tokenizer_folder(opened)} and another data.path",
        )


def tokenizer_folder(opened: LoadedModel) -> Path | str:
    """Return the value of data.tokenizer that gives a model's tokenizer."""
    return opened.tokenizer_folder or opened.tokenizer.name


def label(record: Mapping[str, Any]) -> str:
    """Return a tokenizer's name and the beginning of its digest."""
    return f"{record['name']} ({str(record['vocabulary_sha256'])[:12]})"


def origin_of(opened: LoadedModel) -> Origin:
    """Return the record of the weights from which a run starts."""
    return Origin(
        name=opened.name,
        where=opened.exact_name,
        weights_sha256=digest_of_weights(opened.model),
        step=opened.step or 0,
        tokens=opened.tokens or 0,
    )


def write_initial_checkpoint(run: Path, opened: LoadedModel, recipe: Recipe, state: dict[str, Any]) -> None:
    """Write the weights as the run's checkpoint of step 0, without an optimizer's state.

    `recipe` is that of the run; `state` is what state.json stores. Raises CheckpointError if it cannot be written.
    """
    weights = {name: fitted(name, tensor, recipe.model) for name, tensor in named_weights(opened.model).items()}
    if recipe.data.format == "conversations":
        new = range(opened.tokenizer.vocabulary, with_chat_tokens(opened.tokenizer).vocabulary)
        weights = {name: with_average_rows(name, tensor, new) for name, tensor in weights.items()}
    store.write(run, Snapshot(0, weights, {}, {}, state))


def fitted(name: str, tensor: Tensor, model: ModelRecipe) -> Tensor:
    """Return a tensor of the source with the rows that the run's model has.

    Positions are cut off. New tokens get the mean of all rows, so that they are about as likely as an average token
    (Hewitt 2021, https://nlp.stanford.edu/~johnhew/vocab-expansion.html).
    """
    if name == "position_embedding.weight":
        return tensor[: model.block_size].contiguous()
    if name.startswith(VOCABULARY_ROWS) and len(tensor) < model.vocab_size:
        new = tensor.mean(dim=0, keepdim=True).expand(model.vocab_size - len(tensor), -1)
        return torch.cat([tensor, new])
    return tensor


def with_average_rows(name: str, tensor: Tensor, new: range) -> Tensor:
    """Return a tensor in which the rows of new tokens are the mean of all tokens before them.

    Rows of padding, which training has made unlikely, are thus replaced too.
    """
    if not new or not name.startswith(VOCABULARY_ROWS):
        return tensor
    tensor = tensor.clone()
    tensor[new.start : new.stop] = tensor[: new.start].mean(dim=0)
    return tensor
