"""Dataset sizes: training tokens and epochs, known exactly after preparation or from a published preparation."""

from dataclasses import dataclass

from regpt.base.errors import UserError
from regpt.data.shards import read_manifest
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
