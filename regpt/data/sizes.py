"""Dataset sizes: whether a run fits, and its training tokens and epochs, from the manifest or a published count."""

from dataclasses import dataclass

from regpt.base.errors import DataError, RecipeError, UserError
from regpt.data.shards import SPLITS, Manifest, TokenWindows, read_manifest
from regpt.recipe.recipe import Recipe

# Training tokens of datasets with a published preparation, by `data.source`. FineWeb-Edu's count is build-nanogpt's.
KNOWN_TRAIN_TOKENS = {"hub:HuggingFaceFW/fineweb-edu/sample/10BT": 9_854_000_000}


@dataclass(frozen=True)
class TrainTokens:
    """The number of training tokens of a dataset."""

    count: int
    prepared: bool  # read from the manifest; otherwise a rounded count from a published preparation


def train_tokens(recipe: Recipe) -> TrainTokens | None:
    """Return the dataset's training tokens; None if it is not prepared and no published count is known."""
    try:
        return TrainTokens(read_manifest(recipe.data.directory).tokens("train"), prepared=True)
    except UserError:
        known = KNOWN_TRAIN_TOKENS.get(recipe.data.source)
        return TrainTokens(known, prepared=False) if known else None


def epochs(recipe: Recipe) -> float | None:
    """Return how many times the run reads the training tokens; None if their number is unknown."""
    tokens = train_tokens(recipe)
    return recipe.total_tokens / tokens.count if tokens else None


def tokens_origin(recipe: Recipe, tokens: TrainTokens) -> str:
    """Describe where the number of training tokens comes from."""
    return f"in {recipe.data.path}" if tokens.prepared else "published preparation, rounded"


def epochs_text(recipe: Recipe) -> str:
    """Describe the epochs of a run in one line."""
    tokens = train_tokens(recipe)
    if tokens is None:
        return f"unknown until {recipe.data.path} is prepared"
    origin = tokens_origin(recipe, tokens)
    return f"{recipe.total_tokens / tokens.count:.3f} of {tokens.count:,} training tokens ({origin})"


def check_manifest_fits(manifest: Manifest, batch_windows: int, block_size: int) -> None:
    """Raise DataError if a split is too small for one batch; see `check_fits`."""
    tokens = {split: manifest.tokens(split) for split in SPLITS}
    windows = {
        split: sum(max(0, shard.tokens - 1) // block_size for shard in manifest.of_split(split)) for split in SPLITS
    }
    check_fits(tokens, windows, batch_windows, block_size)


def check_fits(tokens: dict[str, int], windows: dict[str, int], batch_windows: int, block_size: int) -> None:
    """Raise DataError, with a value to set, if a split has too few windows for validation or for one batch."""
    total, fitting = sum(tokens.values()), max(block_size + 1, sum(tokens.values()) // 10)
    needed = fitting + batch_windows * block_size + 1
    fix = f"set data.validation_tokens={fitting}" if total >= needed else f"use more text (at least {needed:,} tokens)"
    if windows["val"] < 1:
        raise DataError(
            f"the validation split has {tokens['val']:,} of {total:,} tokens, less than one window of {block_size} + 1",
            fix,
        )
    if windows["train"] < batch_windows:
        smaller = "" if total >= needed else f", or set data.total_batch_tokens lower than {batch_windows * block_size}"
        raise DataError(
            f"the training split has {tokens['train']:,} of {total:,} tokens, {windows['train']:,} windows;"
            f" a batch takes {batch_windows:,} (data.validation_tokens took {tokens['val']:,})",
            fix + smaller,
        )


def open_windows(recipe: Recipe, manifest: Manifest) -> tuple[TokenWindows, TokenWindows]:
    """Open the windows of training and of validation. Raise UserError if the dataset does not fit the recipe."""
    directory, block_size = recipe.data.directory, recipe.model.block_size
    train = TokenWindows(directory, manifest, "train", block_size)
    validation = TokenWindows(directory, manifest, "val", block_size)
    tokens = {"train": manifest.tokens("train"), "val": manifest.tokens("val")}
    check_rows(recipe, manifest.vocabulary.size)
    check_fits(tokens, {"train": len(train), "val": len(validation)}, recipe.batch_windows, block_size)
    return train, validation


def check_rows(recipe: Recipe, tokens: int) -> None:
    """Raise UserError, with a value to set, if the model has fewer rows than the tokenizer of its data has tokens."""
    if problems := list(recipe.vocabulary_problems(tokens)):
        raise RecipeError(recipe.name, problems)
