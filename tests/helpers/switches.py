"""The switches of the model: each alone, and a set of models in which every pair of values occurs."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, product
from typing import Any

from regpt.recipe.architecture import ModelRecipe

SMALL = ModelRecipe(n_layer=3, n_head=2, n_embd=16, block_size=24, mlp_hidden=40)
ALONE: dict[str, dict[str, Any]] = {
    "relu2": {"activation": "relu2"},
    "head_dim": {"head_dim": 12},
    "n_kv_head": {"n_head": 4, "n_kv_head": 2},
    "qkv_bias": {"qkv_bias": True},
    "rope_scaling": {"rope_scaling": "llama3", "rope_original_block_size": 16},
    "qk_norm": {"qk_norm": True},
    "zero_init": {"zero_init": True},
    "head_init": {"tied_head": False, "head_init": "zero"},
    "embedding_norm": {"embedding_norm": True},
    "embedding_init_std": {"embedding_init_std": 1.0, "tied_head": False},
    "value_residual": {"value_residual": True},
    "residual_scalars": {"residual_scalars": True},
    "value_embeddings": {"value_embeddings": True},
    "logit_softcap": {"logit_softcap": 15.0},
    "z_loss": {"z_loss": 1e-4},
    "document_mask": {"document_mask": True},
    "experts": {"experts": 4, "mlp_hidden": 20},
    "shared_experts": {"experts": 4, "shared_experts": 1, "experts_per_token": 1, "mlp_hidden": 24},
}
FACTORS: dict[str, list[dict[str, Any]]] = {
    "positions": [{}, {"positions": "learned"}, ALONE["rope_scaling"]],
    "normalization": [{}, {"normalization": "layernorm"}],
    "activation": [{}, {"activation": "gelu", "bias": True}, ALONE["relu2"]],
    "head": [{}, {"tied_head": False, "embedding_init_std": 1.0}, ALONE["head_init"]],
    "experts": [{}, ALONE["experts"], ALONE["shared_experts"]],
    **{
        name: [{}, ALONE[name]]
        for name in list(ALONE)[:-2]
        if name not in ("relu2", "head_init", "embedding_init_std", "rope_scaling")
    },
}


def each_alone(base: ModelRecipe = SMALL) -> dict[str, ModelRecipe]:
    """Return a model with each switch, by the name of the switch."""
    return {name: replace(base, **values) for name, values in ALONE.items()}


def covering_set(base: ModelRecipe = SMALL) -> list[ModelRecipe]:
    """Return models in which every pair of values of two factors occurs at least once (greedy covering array)."""
    names = list(FACTORS)
    missing = {
        (a, i, b, j)
        for a, b in combinations(range(len(names)), 2)
        for i, j in product(range(len(FACTORS[names[a]])), range(len(FACTORS[names[b]])))
    }
    models = []
    while missing:
        row: list[int] = []
        for factor, name in enumerate(names):
            gains = [
                sum((a, row[a], factor, value) in missing for a in range(factor))
                + 0.01 * open_pairs(missing, factor, value)
                for value in range(len(FACTORS[name]))
            ]
            row.append(gains.index(max(gains)))
        missing -= set(pairs(row))
        models.append(
            replace(base, **{k: v for f, i in zip(names, row, strict=True) for k, v in FACTORS[f][i].items()})
        )
    return models


def open_pairs(missing: set[tuple[int, int, int, int]], factor: int, value: int) -> int:
    return sum((factor, value) in ((a, i), (b, j)) for a, i, b, j in missing)


def pairs(row: list[int]) -> Iterator[tuple[int, int, int, int]]:
    yield from ((a, row[a], b, row[b]) for a, b in combinations(range(len(row)), 2))
