"""The recipe's section [model]: the architecture, its number of parameters and its FLOPs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from regpt.base.errors import Problem
from regpt.recipe.schema import above_zero, at_least, setting, switch

GPT2_VOCABULARY = 50_257  # token ids of GPT-2's tokenizer; `vocab_size` may pad beyond them
GATE_CHANNELS = 32  # of the residual stream, from which the gates of value embeddings are computed (nanochat)


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """The architecture of the model."""

    n_layer: int = setting(12, "Number of transformer blocks.")
    n_head: int = setting(12, "Number of attention heads.")
    n_embd: int = setting(768, "Width of the residual stream.")
    block_size: int = setting(1024, "Context length in tokens.")
    vocab_size: int = setting(
        50_304, "Rows of the token embedding: GPT-2's 50,257 tokens, padded to a multiple of 64 or 128."
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

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "n_layer", "n_head", "n_embd", "block_size", "mlp_hidden")
        if self.vocab_size < GPT2_VOCABULARY:
            yield Problem(
                "model.vocab_size",
                f"model.vocab_size = {self.vocab_size} is smaller than GPT-2's {GPT2_VOCABULARY} tokens",
            )
        yield from self.head_problems()
        yield from self.expert_problems()
        yield from above_zero(self, "rope_theta", "norm_eps", "init_std")
        if not 0.0 <= self.dropout < 1.0:
            yield Problem("model.dropout", f"model.dropout = {self.dropout} is not in [0, 1)")
        yield from at_least(self, 0, "head_dim", "embedding_init_std", "logit_softcap", "z_loss")
        if self.value_residual and self.n_layer == 1:
            yield Problem(
                "model.value_residual",
                "model.value_residual = true mixes the first block's values into later ones, but model.n_layer = 1",
                ("model.n_layer",),
            )
        if self.head_init == "zero" and self.tied_head:
            yield Problem(
                "model.head_init",
                "model.head_init = 'zero' needs a head of its own, but model.tied_head = true;"
                " set model.tied_head=false",
                ("model.tied_head",),
            )

    def head_problems(self) -> Iterator[Problem]:
        """Check that the heads divide the width, and that rotary embedding can pair the elements of a head."""
        if self.n_head < 1 or self.head_dim < 0:
            return
        if not self.head_dim and self.n_embd % self.n_head:
            yield Problem(
                "model.n_embd",
                f"model.n_embd = {self.n_embd} is not divisible by model.n_head = {self.n_head};"
                " choose another number, or set model.head_dim",
                ("model.n_head", "model.head_dim"),
            )
        elif self.positions == "rope" and self.head_width % 2:
            width = f"model.n_embd / model.n_head = {self.n_embd} / {self.n_head} = {self.head_width}"
            yield Problem(
                "model.positions",
                "model.positions = 'rope' needs an even head width, but"
                f" {f'model.head_dim = {self.head_dim}' if self.head_dim else width}",
                ("model.n_embd", "model.n_head", "model.head_dim"),
            )

    def expert_problems(self) -> Iterator[Problem]:
        """Check that a token can choose among the experts."""
        yield from at_least(self, 0, "experts", "shared_experts", "expert_balance_rate")
        if self.experts == 1:
            yield Problem("model.experts", "model.experts = 1 leaves nothing to choose; 0 is the dense MLP")
        elif self.experts > 0 and not 1 <= self.experts_per_token <= self.experts:
            yield Problem(
                "model.experts_per_token",
                f"model.experts_per_token = {self.experts_per_token} is not between 1 and model.experts"
                f" = {self.experts}",
                ("model.experts",),
            )
        if self.shared_experts > (1 if self.experts else 0):
            reason = "at most 1 is supported" if self.experts else "it needs model.experts"
            yield Problem(
                "model.shared_experts", f"model.shared_experts = {self.shared_experts}: {reason}", ("model.experts",)
            )

    @property
    def head_width(self) -> int:
        """Return the width of an attention head."""
        return self.head_dim or self.n_embd // self.n_head

    @property
    def attention_width(self) -> int:
        """Return the width of all heads together, which is that of queries, keys and values."""
        return self.n_head * self.head_width

    @property
    def layers_with_value_embeddings(self) -> range:
        """Return the blocks that have a value embedding: every second one, the last included."""
        return range((self.n_layer - 1) % 2, self.n_layer if self.value_embeddings else 0, 2)

    @property
    def gate_channels(self) -> int:
        """Return how many channels of the residual stream the gate of a value embedding reads."""
        return min(GATE_CHANNELS, self.n_embd)

    @property
    def block_matmul_parameters(self) -> int:
        """Return the number of weights in a token's matrix products in one block, without gates of shortcuts.

        Of a mixture of experts that is the router and the experts that a token passes.
        """
        mlps = self.experts_per_token + self.shared_experts if self.experts else 1
        router = self.experts * self.n_embd
        return 4 * self.n_embd * self.attention_width + mlps * self.mlp_parameters + router

    @property
    def experts_text(self) -> str:
        """Return how many experts a token passes."""
        return f"{self.experts_per_token} of {self.experts} experts" + (" and a shared one" * self.shared_experts)

    @property
    def expanded_width(self) -> int:
        """Return the width of what the MLP's first product returns: gate and value, or one of them."""
        return self.mlp_hidden * (2 if self.activation == "swiglu" else 1)

    @property
    def mlp_parameters(self) -> int:
        """Return the number of weights in the matrices of one MLP, or of one expert."""
        return self.n_embd * (self.expanded_width + self.mlp_hidden)

    @property
    def matmul_parameters(self) -> int:
        """Return the number of weights in a token's matrix products: the head, tied or not, and not the embeddings."""
        gates = len(self.layers_with_value_embeddings) * self.n_head * self.gate_channels
        return self.n_layer * self.block_matmul_parameters + gates + self.vocab_size * self.n_embd

    @property
    def idle_parameters(self) -> int:
        """Return the number of weights of the experts that a token does not pass; 0 without experts."""
        idle = self.experts - self.experts_per_token if self.experts else 0
        return self.n_layer * idle * self.mlp_parameters

    @property
    def active_parameters(self) -> int:
        """Return the number of parameters that take part in the computation of one token."""
        return self.parameters - self.idle_parameters

    @property
    def parameters(self) -> int:
        """Return the number of parameters of the model."""
        norms = (2 * self.n_layer + 1) * self.n_embd * (2 if self.bias and self.normalization == "layernorm" else 1)
        mlps_with_biases = self.shared_experts if self.experts else 1
        biases = 3 * self.attention_width + self.n_embd + mlps_with_biases * (self.n_embd + self.expanded_width)
        tables = self.block_size * self.n_embd if self.positions == "learned" else 0
        tables += 0 if self.tied_head else self.vocab_size * self.n_embd
        tables += len(self.layers_with_value_embeddings) * self.vocab_size * self.attention_width
        scalars = self.n_layer * (2 * self.residual_scalars + self.value_residual)
        return (
            self.matmul_parameters + self.idle_parameters + norms + self.bias * self.n_layer * biases + tables + scalars
        )

    @property
    def flops_per_token(self) -> int:
        """Return the floating-point operations of one training step, forward and backward, per token.

        6 per weight in a matrix product plus 12 x layers x width of the heads x context for attention: the convention
        of PaLM (arXiv 2204.02311, appendix B) and nanoGPT, which counts attention as if there were no causal mask.
        """
        return 6 * self.matmul_parameters + 12 * self.n_layer * self.attention_width * self.block_size
