"""How fast a card trains a model of this family: one formula, with two constants fitted to published speeds.

A token takes the time of its floating-point operations at a share of the card's peak, and that of a number of passes
over what autograd keeps of the blocks, at the bandwidth of the card's memory (Williams et al. 2009, "Roofline", with
the two added up, since kernels come one after another):

    seconds = FLOP / (SHARE x peak) + PASSES x bytes / bandwidth

`python -m benchmarks.roofline` fits the constants on every second published speed and holds them against the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from regpt.base.architecture import ModelRecipe
from regpt.base.cards import Card, find_card
from regpt.plan.memory import ParallelLayout, block_bytes

# Fitted (docs/plan.md). The share is at its bound: left alone, the fit takes products to be faster than the peak and
# lays more on memory. What these figures determine is the sum, not which part of it is which.
SHARE = 1.0
PASSES = 13.0
LOW, HIGH = 0.7, 1.25  # times the formula's speed: all published speeds below lie between, but for one
FITTED_PARAMETERS = 2e9  # the constants were held against models up to 1.6 B
BEYOND = (
    0.30,
    0.48,
)  # shares of peak of larger ones: torchtitan's 8B and OLMo's 7B on H100s, 0.33 to 0.48, and a reserve


@dataclass(frozen=True)
class Speed:
    """A published speed of training."""

    card: str
    model: str  # one of MODELS
    tokens_per_second: float  # of each card
    source: str

    @property
    def predicted(self) -> float:
        return 1 / seconds_per_token(MODELS[self.model], find_card(self.card))


def gpt2(layers: int, width: int, **other: object) -> ModelRecipe:
    """A classic model of another size; heads are 64 wide."""
    parts = {"positions": "learned", "activation": "gelu", "normalization": "layernorm", "bias": True}
    settings = {"n_layer": layers, "n_embd": width, "n_head": width // 64, "mlp_hidden": 4 * width, **parts, **other}
    return ModelRecipe(**settings)  # type: ignore[arg-type]


NANOCHAT = {"block_size": 2048, "vocab_size": 65_536, "tied_head": False, "positions": "rope", "bias": False}
MODELS = {
    "GPT-2 124M": gpt2(12, 768),
    "GPT-2 350M": gpt2(24, 1024),
    "GPT-2 774M": gpt2(36, 1280),
    "GPT-2 1558M": gpt2(48, 1600),
    "nanochat d20": gpt2(20, 1280, **NANOCHAT),
    "nanochat d24": gpt2(24, 1536, **NANOCHAT),
    # TinyLlama's 4 key-value heads make its attention a little smaller than this one
    "TinyLlama 1.1B": ModelRecipe(
        n_layer=22, n_head=32, n_embd=2048, mlp_hidden=5632, block_size=2048, vocab_size=32_000, tied_head=False
    ),
}

# Training in bfloat16 with fused attention, compiled or hand-written, without activation checkpointing, as the project
# itself publishes it. Seconds of a step are turned into tokens/s by its batch. By card and size.
PUBLISHED = (
    Speed("RTX 4090", "GPT-2 124M", 110_350, "llm.c's PyTorch trainer on 2 cards: T. Romero, nanoGPT speedrun worklog"),
    Speed("A100 40GB", "TinyLlama 1.1B", 24_000, "TinyLlama, README.md"),
    Speed("A100 80GB", "GPT-2 124M", 218_450, "llm.c, scripts/run_gpt2_124M.sh: 8 cards, 300 ms"),
    Speed("A100 80GB", "GPT-2 350M", 79_920, "llm.c, scripts/run_gpt2_350M.sh: 8 cards, 820 ms"),
    Speed("A100 80GB", "nanochat d20", 66_100, "nanochat, pull request 147: 990 ms; its 8 cards follow from its MFU"),
    Speed("A100 80GB", "GPT-2 774M", 38_550, "llm.c, scripts/run_gpt2_774M.sh: 8 cards, 1.7 s"),
    Speed("H100", "GPT-2 124M", 450_000, "modded-nanogpt, README.md: llm.c on 8 cards, 45 min, rounded"),
    Speed("H100", "nanochat d24", 99_980, "nanochat, dev/LEADERBOARD.md, run 1: 8 cards"),
    Speed("H100", "GPT-2 1558M", 46_810, "llm.c, scripts/run_gpt2_1558M.sh: 8 cards, 2.80 s"),
)
# Not taken for the fit: single persons' figures, one of them by another clock, one without float32 weights.
ELSEWHERE = (
    Speed("H100", "GPT-2 124M", 350_000, "Jjschwartz, scaling GPT-2: PyTorch, compiled, 1 card"),
    Speed("H100", "GPT-2 124M", 380_800, "the same on 8 cards"),
    Speed("H100", "GPT-2 1558M", 40_000, "the same, 1.5B on 8 cards"),
    Speed("RTX 4090", "nanochat d20", 38_060, "nanochat, issue 157"),
    Speed("A100 40GB", "GPT-2 124M", 200_503, "llm.c, pull request 378: 1 card with its clock held at 1,275 MHz"),
    Speed("RTX 5090", "GPT-2 124M", 209_110, "a fork of llm.c with its own kernels, no float32 weights, 3 steps"),
)


def parts_per_token(model: ModelRecipe, card: Card) -> tuple[float, float]:
    """(seconds at the full peak, seconds of one pass over what is kept)"""
    attention = 12 * model.n_layer * model.n_embd * model.block_size
    flops = model.flops_per_token - attention // 2  # fused kernels skip what the causal mask hides
    kept = model.n_layer * block_bytes(model, ParallelLayout())
    return flops / card.peak, kept / card.bandwidth


def seconds_per_token(model: ModelRecipe, card: Card, share: float = SHARE, passes: float = PASSES) -> float:
    """Of training on one card, the optimizer's step and everything else included."""
    at_peak, one_pass = parts_per_token(model, card)
    return at_peak / share + passes * one_pass


def speeds(model: ModelRecipe, card: Card) -> tuple[float, float]:
    """Tokens/s of one card: the careful end of what is to be expected, and the good one."""
    if model.parameters > FITTED_PARAMETERS:
        low, high = (share * card.peak / model.flops_per_token for share in BEYOND)
        return low, high
    middle = 1 / seconds_per_token(model, card)
    return LOW * middle, HIGH * middle


def fitted(speeds: Sequence[Speed]) -> tuple[float, float]:
    """(share, passes) with the smallest sum of squared relative errors in time; no product is faster than the peak."""
    rows = []
    for speed in speeds:
        at_peak, one_pass = parts_per_token(MODELS[speed.model], find_card(speed.card))
        rows.append((at_peak * speed.tokens_per_second, one_pass * speed.tokens_per_second))
    aa, ab, bb = (sum(row[i] * row[j] for row in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    a, b = sum(row[0] for row in rows), sum(row[1] for row in rows)
    slower = (a * bb - b * ab) / (aa * bb - ab * ab)  # 1 / share
    slower = max(1.0, slower)
    return 1 / slower, max(0.0, (b - slower * ab) / bb)


def halves() -> tuple[Sequence[Speed], Sequence[Speed]]:
    """(fitted on, held out): the published speeds in turn."""
    return PUBLISHED[::2], PUBLISHED[1::2]
