"""In what a run leaves the original GPT-2, and in what two recipes differ: read off the recipes."""

from regpt.base.recipe import Recipe
from regpt.base.settings import differences
from regpt.results.runs import Run


def differences_from_gpt2(run: Run) -> list[str]:
    """Where this run leaves what OpenAI describes for GPT-2 124M, read off its recipe and its device."""
    model, recipe, device = run.recipe.model, run.recipe, run.environment["device"]
    size = (model.n_layer, model.n_embd, model.n_head, model.block_size)
    found = {
        "**Attention:** fused scaled_dot_product_attention instead of separate products and softmax": True,
        "**AdamW** with decoupled weight decay instead of Adam": True,
        f"**Precision:** {device['precision']} autocast": device["precision"] == "bfloat16",
        f"**Vocabulary padded:** {model.vocab_size:,} rows instead of 50,257": model.vocab_size != 50_257,
        "**torch.compile**": device["compiled"],
        "**RoPE** instead of a learned table of positions": model.positions == "rope",
        "**SwiGLU** instead of GELU": model.activation == "swiglu",
        "**RMSNorm** instead of LayerNorm": model.normalization == "rmsnorm",
        "**No biases**": not model.bias,
        f"**Dropout** {model.dropout} instead of 0.1": model.dropout != 0.1,
        "**Untied head**": not model.tied_head,
        "**Size:** {} layers of width {} with {} heads and {:,} positions instead of 12, 768, 12 and 1,024".format(
            *size
        ): size != (12, 768, 12, 1024),
        f"**Data:** {run.environment['data']['source']['description']} instead of WebText": True,
        f"**Batch:** {recipe.data.total_batch_tokens:,} tokens instead of 512 × 1,024": recipe.data.total_batch_tokens
        != 524_288,
    }
    return [line for line, holds in found.items() if holds]


def rows_of_differences(ours: Recipe, theirs: Recipe) -> list[tuple[str, str, str, str]]:
    """(setting, ours, theirs, how many times as much), where the two recipes differ."""
    rows = []
    for setting, our, their in differences(ours, theirs):
        numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (our, their))
        rows.append((setting, str(our), str(their), f"× {our / their:.3g}" if numbers and their else ""))
    return rows
