"""Predict how fast a card trains a model of this family, with two constants fitted to published speeds.

A token takes the time of its floating-point operations at a share of the card's peak, plus the time of several passes
over the blocks' saved activations at the card's memory bandwidth:

    seconds = FLOP / (SHARE x peak) + PASSES x bytes / bandwidth

Source: the roofline model (Williams et al. 2009), with the two terms added because kernels run one after another.
`benchmarks/published_speeds.py` fits the constants to half of the published speeds; `python -m benchmarks.roofline`
compares the result with the other half.
"""

from regpt.base.architecture import ModelRecipe
from regpt.base.cards import Card
from regpt.plan.memory import ParallelLayout, block_bytes

# Fitted (docs/plan.md). The share is at its bound: without the bound the fit assumes matrix products faster than the
# peak and puts more time on memory. The data determines the sum of the two terms, not how it divides between them.
SHARE = 1.0
PASSES = 13.0
LOW, HIGH = 0.7, 1.25  # times the predicted speed; all published speeds but one lie in this range
FITTED_PARAMETERS = 2e9  # the fit covers models up to 1.6 B parameters
# Shares of peak for larger models: 0.33 to 0.48 is published for 7 and 8 B models on H100s (OLMo, torchtitan).
BEYOND = (0.30, 0.48)


def parts_per_token(model: ModelRecipe, card: Card) -> tuple[float, float]:
    """Return (seconds of compute at the full peak, seconds of one pass over saved activations) per token."""
    attention = 12 * model.n_layer * model.n_embd * model.block_size
    flops = model.flops_per_token - attention // 2  # fused kernels skip what the causal mask hides
    saved = model.n_layer * block_bytes(model, ParallelLayout(bfloat16=card.precision == "bfloat16"))
    return flops / card.peak, saved / card.bandwidth


def seconds_per_token(model: ModelRecipe, card: Card, share: float = SHARE, passes: float = PASSES) -> float:
    """Return the seconds per token when training on one card, including the optimizer step."""
    at_peak, one_pass = parts_per_token(model, card)
    return at_peak / share + passes * one_pass


def speed_range(model: ModelRecipe, card: Card) -> tuple[float, float]:
    """Return (conservative, optimistic) tokens/s of one card."""
    if model.parameters > FITTED_PARAMETERS:
        low, high = (share * card.peak / model.flops_per_token for share in BEYOND)
        return low, high
    middle = 1 / seconds_per_token(model, card)
    return LOW * middle, HIGH * middle
