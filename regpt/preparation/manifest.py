"""The manifest of a finished preparation."""

from dataclasses import replace
from typing import Any

from regpt.base.errors import DataError
from regpt.corpus.corpora import Corpus
from regpt.data.shards import Manifest, Shard
from regpt.data.sizes import check_manifest_fits
from regpt.data.tokenizer import Tokenizer
from regpt.data.validation_split import SplitRule, ValidationSplit, describe_rule
from regpt.preparation.state import PrepareState
from regpt.recipe.recipe import Recipe


class EmptyOrTooSmall(DataError):
    """The text is too short for the recipe. All of it was read, so nothing is kept."""


def build_manifest(
    recipe: Recipe,
    tokenizer: Tokenizer,
    corpus: Corpus,
    backend: dict[str, Any],
    state: PrepareState,
    shards: tuple[Shard, ...],
    validation: ValidationSplit,
) -> Manifest:
    """Return the manifest of a finished preparation. Raise EmptyOrTooSmall if the recipe cannot use the dataset."""
    counts, data = state.counts, recipe.data
    if not shards:
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.refused.items()) or "no documents"
        raise EmptyOrTooSmall(f"data.source = '{data.source}' has no text ({reasons})", "set data.source to other text")
    if validation.rule is SplitRule.FIRST_TOKENS:
        val_tokens = sum(shard.tokens for shard in shards if shard.split == "val")
        validation = replace(validation, text_tokens=counts.tokens, validation_tokens=val_tokens)
    manifest = Manifest(
        tokenizer=tokenizer.record,
        source={"asked": data.source, "description": corpus.description, "parts": len(corpus.parts), **corpus.origin},
        split_rule=describe_rule(validation, data.validation_tokens),
        validation=validation,
        shards=shards,
        statistics=state.statistics(),
        made_with=backend,
    )
    try:
        check_manifest_fits(manifest, recipe.batch_windows, recipe.model.block_size)
    except DataError as error:
        raise EmptyOrTooSmall(error.problem, error.fix) from None
    return manifest
