"""Sizes of data sets: training tokens that are known before preparing."""

from regpt.base.errors import UserError
from regpt.base.recipe import Recipe
from regpt.data.shards import read_manifest


def train_tokens(recipe: Recipe) -> tuple[int, str]:
    """(training tokens of the data set, where that is known from); 0 where it is not."""
    try:
        return read_manifest(recipe.data.directory).tokens("train"), f"in {recipe.data.path}"
    except UserError:
        return KNOWN_TRAIN_TOKENS.get(recipe.data.source, 0), "by the public preparation, rounded"


# Training tokens of data sets whose public preparation is known, by `data.source`. FineWeb-Edu's is build-nanogpt's.
KNOWN_TRAIN_TOKENS = {"hub:HuggingFaceFW/fineweb-edu/sample/10BT": 9_854_000_000}
