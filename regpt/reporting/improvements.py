"""Names of the switches that a recipe has turned on."""

from regpt.recipe.architecture import ModelRecipe
from regpt.recipe.optimization import OptimizerRecipe
from regpt.recipe.recipe import Recipe


def improvements(recipe: Recipe) -> list[str]:
    """Return the improvements that a recipe uses, in the order of its settings."""
    return [*model_improvements(recipe.model), *optimizer_improvements(recipe.optimizer)]


def model_improvements(model: ModelRecipe) -> list[str]:
    found = {
        f"heads of width {model.head_dim}": model.head_dim > 0,
        f"grouped-query attention ({model.kv_heads} heads of keys and values)": model.kv_heads < model.n_head,
        "biases of queries, keys and values": model.qkv_bias and not model.bias,
        f"rotary wavelengths stretched {model.rope_factor:g} times": model.rope_scaling != "none",
        "QK norm": model.qk_norm,
        "zero-initialized output projections": model.zero_init,
        "a head that starts at zero": model.head_init == "zero",
        f"an embedding of standard deviation {model.embedding_init_std:g}": model.embedding_init_std > 0,
        "embedding norm": model.embedding_norm,
        "value residual": model.value_residual,
        "residual scalars": model.residual_scalars,
        "value embeddings": model.value_embeddings,
        f"logits capped at {model.logit_softcap:g}": model.logit_softcap > 0,
        f"z-loss {model.z_loss:g}": model.z_loss > 0,
        "document mask": model.document_mask,
        f"a mixture of experts ({model.experts_text} per token)": model.experts > 0,
    }
    return [name for name, is_on in found.items() if is_on]


def optimizer_improvements(optimizer: OptimizerRecipe) -> list[str]:
    found = {
        "Muon": optimizer.kind == "muon" and not optimizer.normuon,
        "NorMuon": optimizer.normuon,
        "cautious weight decay": optimizer.cautious_weight_decay,
        "weight decay that follows the learning rate": optimizer.weight_decay_schedule == "lr",
        "trapezoidal schedule": optimizer.schedule == "trapezoid",
    }
    return [name for name, is_on in found.items() if is_on]
