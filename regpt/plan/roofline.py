"""Predict how fast a card trains a model of this family, with two constants fitted to published speeds.

A token takes the time of its floating-point operations at a share of the card's peak, plus the time of the memory
traffic of the blocks and of the loss at the card's bandwidth:

    seconds = FLOP / (SHARE x peak) + (PASSES x saved activations + LOSS_BYTES x vocabulary) / bandwidth

Source: the roofline model (Williams et al. 2009), with the terms added because kernels run one after another.
`python -m benchmarks.roofline` fits the two constants to half of the published speeds and compares the result with the
other half. The bytes of the loss are counted, not fitted.
"""

from typing import NamedTuple

from regpt.base.cards import Card
from regpt.plan.memory import ParallelLayout, block_bytes
from regpt.recipe.architecture import ModelRecipe

# Fitted (docs/plan.md). The share is at its bound: without the bound the fit assumes matrix products faster than the
# peak and puts more time on memory. The data determines the sum of the two terms, not how it divides between them.
SHARE = 1.0
PASSES = 11.7
# Bytes of memory traffic per logit, by the precision of products. Uncompiled: counted by `benchmarks/loss_traffic.py`.
# Compiled: each logit is written by a product, read for the softmax, read and overwritten by its gradient, and read by
# two products. That is derived for a GPU; on a CPU the softmax reads bfloat16 logits twice, which is counted: 14.
LOSS_BYTES_COMPILED = {"bfloat16": 12, "float32": 24}
LOSS_BYTES_UNCOMPILED = {"bfloat16": 26, "float32": 20}
LOW, HIGH = 0.7, 1.25  # times the predicted speed; all published speeds but one lie in this range
FITTED_PARAMETERS = 2e9  # the fit covers models up to 1.6 B parameters
# Shares of peak for larger models: 0.33 to 0.48 is published for 7 and 8 B models on H100s (OLMo, torchtitan).
BEYOND = (0.30, 0.48)


class TokenSeconds(NamedTuple):
    """The seconds per token of the terms of the formula, before its constants are applied."""

    at_peak: float  # compute at the full peak
    one_pass: float  # one pass over the saved activations
    loss: float  # memory traffic of the loss


def parts_per_token(model: ModelRecipe, card: Card, compiled: bool = True) -> TokenSeconds:
    """Return the terms for one card. `compiled`: the loss is compiled by torch.compile (run.compile)."""
    attention = 12 * model.n_layer * model.n_embd * model.block_size
    flops = model.flops_per_token - attention // 2  # fused kernels skip what the causal mask hides
    saved = model.n_layer * block_bytes(model, ParallelLayout(bfloat16=card.precision == "bfloat16"))
    per_logit = (LOSS_BYTES_COMPILED if compiled else LOSS_BYTES_UNCOMPILED)[card.precision]
    return TokenSeconds(flops / card.peak, saved / card.bandwidth, per_logit * model.vocab_size / card.bandwidth)


def seconds_per_token(
    model: ModelRecipe, card: Card, share: float = SHARE, passes: float = PASSES, compiled: bool = True
) -> float:
    """Return the seconds per token when training on one card, including the optimizer step."""
    parts = parts_per_token(model, card, compiled)
    return parts.at_peak / share + passes * parts.one_pass + parts.loss


def speed_range(model: ModelRecipe, card: Card, compiled: bool = True) -> tuple[float, float]:
    """Return (conservative, optimistic) tokens/s of one card."""
    if model.parameters > FITTED_PARAMETERS:
        low, high = (share * card.peak / model.flops_per_token for share in BEYOND)
        return low, high
    middle = 1 / seconds_per_token(model, card, compiled=compiled)
    return LOW * middle, HIGH * middle
