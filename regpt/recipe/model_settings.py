"""The settings of the recipe's section [model]."""

from dataclasses import dataclass
from typing import Literal

from regpt.recipe.schema import setting, switch


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The settings of a model. `ModelRecipe` checks them and derives sizes and costs from them."""

    n_layer: int = setting(12, "Number of transformer blocks.")
    n_head: int = setting(12, "Number of attention heads.")
    n_embd: int = setting(768, "Width of the residual stream.")
    block_size: int = setting(1024, "Context length in tokens.")
    vocab_size: int = setting(
        50_304,
        "Rows of the token embedding: GPT-2's 50,257 tokens, padded to a multiple of 64 or 128; 0: as data.tokenizer"
        " needs, padded to a multiple of 64.",
    )
    positions: Literal["learned", "rope"] = setting(
        "rope", "Position encoding: a learned table, or rotary embedding of queries and keys."
    )
    rope_theta: float = setting(10_000.0, "Base of the rotary wavelengths.")
    activation: Literal["gelu", "swiglu", "relu2"] = setting(
        "swiglu",
        "MLP activation; gelu: tanh approximation, as in GPT-2; swiglu: gated, as in Llama; relu2: square of ReLU"
        " (So et al. 2021, arXiv 2109.08668).",
    )
    mlp_hidden: int = setting(
        2048, "Hidden width of the MLP; swiglu needs two thirds of the others' for the same number of parameters."
    )
    normalization: Literal["layernorm", "rmsnorm"] = setting(
        "rmsnorm", "Normalization before attention, before the MLP and after the last block."
    )
    norm_eps: float = setting(1e-5, "Epsilon added to the variance in normalization.")
    bias: bool = setting(False, "Use biases in linear layers and LayerNorm.")
    tied_head: bool = setting(True, "Share the token embedding's weight with the output head.")
    dropout: float = setting(0.0, "Dropout rate after the embedding, in attention and on the residual branches.")
    init_std: float = setting(
        0.02,
        "Standard deviation of the initial weights; residual projections use init_std x (2 n_layer)^-0.5.",
    )

    # Improvements, all off in the recorded models. docs/improvements.md says what each of them is worth.

    head_dim: int = switch(0, "Width of an attention head; 0: n_embd / n_head.")
    n_kv_head: int = switch(
        0,
        "Heads of keys and values, each shared by n_head / n_kv_head heads of queries (grouped-query attention,"
        " arXiv 2305.13245); 0: n_head.",
    )
    qkv_bias: bool = switch(False, "Add biases to queries, keys and values, as Qwen2 does, where bias = false.")
    rope_scaling: Literal["none", "llama3"] = switch(
        "none", "Stretch the long rotary wavelengths for a longer context; llama3: as in Llama 3.1 (arXiv 2407.21783)."
    )
    rope_factor: float = switch(8.0, "Factor of the longest wavelengths with rope_scaling.")
    rope_low_frequency_factor: float = switch(
        1.0, "Wavelengths above rope_original_block_size / this are stretched by rope_factor."
    )
    rope_high_frequency_factor: float = switch(
        4.0, "Wavelengths below rope_original_block_size / this stay as they are; between both, by a mean of the two."
    )
    rope_original_block_size: int = switch(8192, "Context length in tokens before rope_scaling.")
    qk_norm: bool = switch(
        False, "Normalize queries and keys in each head, without weights (Henry et al. 2020, arXiv 2010.04245)."
    )
    zero_init: bool = switch(
        False, "Start the output projections of attention and MLP at zero, so that each block starts as the identity."
    )
    head_init: Literal["normal", "zero"] = switch(
        "normal", "Initial weights of an untied head; normal: as other matrices; zero: all tokens start equally likely."
    )
    embedding_init_std: float = switch(
        0.0,
        "Standard deviation of the initial token embedding; 0: init_std. modded-nanogpt uses 1 with embedding_norm.",
    )
    embedding_norm: bool = switch(False, "Normalize the embedding, without weights, before the first block.")
    value_residual: bool = switch(
        False,
        "Mix the first block's attention values into those of each block, by a learned share"
        " (Zhou et al. 2024, arXiv 2410.17897).",
    )
    residual_scalars: bool = switch(
        False,
        "Before each block add the embedding to the residual stream, each times a learned scalar (modded-nanogpt).",
    )
    value_embeddings: bool = switch(
        False,
        "In every second block add to the attention values a learned vector of each token, scaled by a gate in each"
        " head (modded-nanogpt, nanochat).",
    )
    logit_softcap: float = switch(
        0.0, "Limit logits to this value by cap x tanh(logits / cap) (Gemma 2, arXiv 2408.00118); 0: no limit."
    )
    z_loss: float = switch(
        0.0,
        "Add this factor times the squared log of the softmax's denominator to the training loss"
        " (PaLM, arXiv 2204.02311); 0: not added.",
    )
    document_mask: bool = switch(
        False, "Let attention see the tokens of its own document only, which <|endoftext|> begins."
    )
    experts: int = switch(
        0,
        "Experts of each layer's mixture of experts, which replaces its MLP; they have no biases. 0: a dense MLP.",
    )
    experts_per_token: int = switch(
        2, "Experts that each token passes, chosen by a router; mlp_hidden is the width of each."
    )
    shared_experts: int = switch(0, "1 adds an MLP that every token passes to each mixture of experts.")
    expert_balance_rate: float = switch(
        1e-3,
        "Change per step of the bias that raises the scores of experts with few tokens and lowers those of others"
        " (arXiv 2408.15664); 0: no balancing.",
    )
