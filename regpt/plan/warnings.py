"""What cannot be, or is better thought over: records faster than cards, disks too small, text too often repeated."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from regpt.base.cards import Card, find_card
from regpt.base.errors import UserError
from regpt.base.format import three_digits
from regpt.base.recipe import Recipe
from regpt.data.sizes import train_tokens
from regpt.plan.roofline import speeds
from regpt.plan.sizes import disk_needed

IMPOSSIBLE = 0.95  # of peak: no training has been seen to reach that
DOUBTFUL = 1.05  # times the good end of what the roofline gives


def find_warnings(recipe: Recipe, runs: Path) -> Iterator[str]:
    """A line each."""
    yield from record_warnings(recipe)
    free = shutil.disk_usage(existing(runs)).free
    if free < disk_needed(recipe):
        yield (
            f"{runs}: {free / 1e9:.1f} GB are free, checkpoints take up to {disk_needed(recipe) / 1e9:.1f} GB;"
            " set checkpoint.keep_last, or --runs to another disk"
        )
    tokens, _ = train_tokens(recipe)
    if tokens and recipe.total_tokens > 4 * tokens:
        yield (
            f"{recipe.total_tokens / tokens:.1f} epochs: beyond about 4, repeated text teaches much less than new text"
            " (Muennighoff et al. 2023, arXiv 2305.16264)"
        )
    if recipe.optimizer.warmup_steps >= recipe.run.max_steps:
        yield (
            f"optimizer.warmup_steps = {recipe.optimizer.warmup_steps:,} leaves no step at optimizer.max_lr in"
            f" run.max_steps = {recipe.run.max_steps:,}"
        )


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = path.absolute()
    return path if path.exists() else existing(path.parent)


def record_warnings(recipe: Recipe) -> Iterator[str]:
    """Whether recorded hours on recorded cards can be, by the cards' peak and by the roofline."""
    recorded = recipe.published
    found = recorded_cards(recorded.hardware)
    if not recorded.hours or found is None:
        return
    count, card = found
    speed = recipe.total_tokens / (3600 * recorded.hours)
    share = speed * recipe.model.flops_per_token / (count * card.peak)
    said = (
        f"{recorded.origin or 'the record'}: {recipe.total_tokens / 1e9:.1f} G tokens in {recorded.hours:g} h on"
        f" {count} x {card.name} are {three_digits(speed)} tokens/s, about {share:.0%} of peak"
    )
    good = count * speeds(recipe.model, card)[1]
    if share > IMPOSSIBLE:
        yield (
            f"{said}: that cannot be. The good end of the range for {count} x {card.name} is {three_digits(good)}"
            " tokens/s"
        )
    elif speed > DOUBTFUL * good:
        yield f"{said}: {speed / good:.2g} times the good end of the range for them"


def recorded_cards(hardware: str) -> tuple[int, Card] | None:
    """'4 x RTX 3090, DDP over NCCL' -> (4, the card); None where no card that is known is named."""
    match = re.match(r"\s*(\d+)\s*[x×]\s*([^,;]+)", hardware)
    if match is None:
        return None
    try:
        return int(match[1]), find_card(match[2])
    except UserError:
        return None
