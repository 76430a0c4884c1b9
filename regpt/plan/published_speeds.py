"""Training speeds that others published, with their sources. `benchmarks/roofline.py` fits the roofline to them."""

import re
from dataclasses import dataclass

from regpt.base.cards import Card, find_card
from regpt.plan.roofline import seconds_per_token
from regpt.recipe.architecture import ModelRecipe


@dataclass(frozen=True)
class Speed:
    """A published training speed."""

    card: str
    model: str  # a key of MODELS
    tokens_per_second: float  # per card
    source: str  # the project, then where and how: "llm.c, pull request 378: 1 card"

    @property
    def project(self) -> str:
        return re.split("[,:]", self.source)[0]

    @property
    def predicted(self) -> float:
        """Return the tokens/s per card that the roofline predicts."""
        return 1 / seconds_per_token(MODELS[self.model], find_card(self.card))


def gpt2(layers: int, width: int, **other: object) -> ModelRecipe:
    """Return a classic GPT-2 of another size, with heads of width 64."""
    parts = {"positions": "learned", "activation": "gelu", "normalization": "layernorm", "bias": True}
    settings = {"n_layer": layers, "n_embd": width, "n_head": width // 64, "mlp_hidden": 4 * width, **parts, **other}
    return ModelRecipe(**settings)  # type: ignore[arg-type]


SIMILAR_SIZE = 0.2  # relative difference in parameters up to which speeds are shown next to each other
NANOCHAT = {"block_size": 2048, "vocab_size": 65_536, "tied_head": False, "positions": "rope", "bias": False}
MODELS = {
    "GPT-2 124M": gpt2(12, 768),
    "GPT-2 350M": gpt2(24, 1024),
    "GPT-2 774M": gpt2(36, 1280),
    "GPT-2 1558M": gpt2(48, 1600),
    "nanochat d20": gpt2(20, 1280, **NANOCHAT),
    "nanochat d24": gpt2(24, 1536, **NANOCHAT),
    # TinyLlama has 4 key-value heads, so its attention is slightly smaller than this one
    "TinyLlama 1.1B": ModelRecipe(
        n_layer=22, n_head=32, n_embd=2048, mlp_hidden=5632, block_size=2048, vocab_size=32_000, tied_head=False
    ),
}

# Training in bfloat16 with fused attention, compiled or hand-written, without activation checkpointing, as published by
# the projects themselves. Step times are converted to tokens/s with the batch size. Ordered by card and model size.
PUBLISHED = (
    Speed("RTX 4090", "GPT-2 124M", 110_350, "T. Romero, nanoGPT speedrun worklog: llm.c's PyTorch trainer on 2 cards"),
    Speed("A100 40GB", "TinyLlama 1.1B", 24_000, "TinyLlama, README.md"),
    Speed("A100 80GB", "GPT-2 124M", 218_450, "llm.c, scripts/run_gpt2_124M.sh: 8 cards, 300 ms"),
    Speed("A100 80GB", "GPT-2 350M", 79_920, "llm.c, scripts/run_gpt2_350M.sh: 8 cards, 820 ms"),
    Speed("A100 80GB", "nanochat d20", 66_100, "nanochat, pull request 147: 990 ms; its 8 cards follow from its MFU"),
    Speed("A100 80GB", "GPT-2 774M", 38_550, "llm.c, scripts/run_gpt2_774M.sh: 8 cards, 1.7 s"),
    Speed("H100", "GPT-2 124M", 450_000, "modded-nanogpt, README.md: llm.c on 8 cards, 45 min, rounded"),
    Speed("H100", "nanochat d24", 99_980, "nanochat, dev/LEADERBOARD.md, run 1: 8 cards"),
    Speed("H100", "GPT-2 1558M", 46_810, "llm.c, scripts/run_gpt2_1558M.sh: 8 cards, 2.80 s"),
)
# Excluded from the fit: our own; reports by individuals, one with a lowered clock and one without float32 weights.
ELSEWHERE = (
    Speed("H200", "GPT-2 124M", 494_800, "regpt, docs/gpu.md: gpt2-classic, measured by us on 1 card"),
    Speed("H100", "GPT-2 124M", 350_000, "Jjschwartz, scaling GPT-2: PyTorch, compiled, 1 card"),
    Speed("H100", "GPT-2 124M", 380_800, "Jjschwartz, scaling GPT-2: PyTorch, compiled, 8 cards"),
    Speed("H100", "GPT-2 1558M", 40_000, "Jjschwartz, scaling GPT-2: PyTorch, compiled, 8 cards"),
    Speed("RTX 4090", "nanochat d20", 38_060, "nanochat, issue 157"),
    Speed("A100 40GB", "GPT-2 124M", 200_503, "llm.c, pull request 378: 1 card with its clock held at 1,275 MHz"),
    Speed("RTX 5090", "GPT-2 124M", 209_110, "a fork of llm.c with its own kernels, no float32 weights, 3 steps"),
)


def published_speeds(card: Card, model: ModelRecipe) -> tuple[Speed, ...]:
    """Return the published speeds on a card for models of about the size of `model`, the fastest first."""
    found = [
        one
        for one in (*PUBLISHED, *ELSEWHERE)
        if one.card == card.name and abs(MODELS[one.model].parameters / model.parameters - 1) <= SIMILAR_SIZE
    ]
    return tuple(sorted(found, key=lambda one: -one.tokens_per_second))
