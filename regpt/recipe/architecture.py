"""The recipe's section [model]: the architecture, its number of parameters and its FLOPs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from regpt.base.errors import Problem
from regpt.recipe.schema import above_zero, at_least, setting

GPT2_VOCABULARY = 50_257  # token ids of GPT-2's tokenizer; `vocab_size` may pad beyond them


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
    activation: Literal["gelu", "swiglu"] = setting(
        "swiglu", "MLP activation; gelu: tanh approximation, as in GPT-2; swiglu: gated, as in Llama."
    )
    mlp_hidden: int = setting(
        2048, "Hidden width of the MLP; swiglu needs two thirds of gelu's for the same number of parameters."
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

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "n_layer", "n_head", "n_embd", "block_size", "mlp_hidden")
        if self.vocab_size < GPT2_VOCABULARY:
            yield Problem(
                "model.vocab_size",
                f"model.vocab_size = {self.vocab_size} is smaller than GPT-2's {GPT2_VOCABULARY} tokens",
            )
        if self.n_head > 0 and self.n_embd % self.n_head:
            yield Problem(
                "model.n_embd",
                f"model.n_embd = {self.n_embd} is not divisible by model.n_head = {self.n_head}",
                ("model.n_head",),
            )
        elif self.n_head > 0 and self.positions == "rope" and self.n_embd // self.n_head % 2:
            yield Problem(
                "model.positions",
                f"model.positions = 'rope' needs an even head width, but model.n_embd / model.n_head"
                f" = {self.n_embd} / {self.n_head} = {self.n_embd // self.n_head}",
                ("model.n_embd", "model.n_head"),
            )
        yield from above_zero(self, "rope_theta", "norm_eps", "init_std")
        if not 0.0 <= self.dropout < 1.0:
            yield Problem("model.dropout", f"model.dropout = {self.dropout} is not in [0, 1)")

    @property
    def matmul_parameters(self) -> int:
        """Return the number of weights in matrix products. Counts the head, tied or not; not the embeddings."""
        attention = 4 * self.n_embd**2
        mlp = (3 if self.activation == "swiglu" else 2) * self.n_embd * self.mlp_hidden
        return self.n_layer * (attention + mlp) + self.vocab_size * self.n_embd

    @property
    def parameters(self) -> int:
        """Return the number of parameters of the model."""
        norms = (2 * self.n_layer + 1) * self.n_embd * (2 if self.bias and self.normalization == "layernorm" else 1)
        expanded = self.mlp_hidden * (2 if self.activation == "swiglu" else 1)
        biases = self.n_layer * (5 * self.n_embd + expanded) if self.bias else 0
        tables = self.block_size * self.n_embd if self.positions == "learned" else 0
        tables += 0 if self.tied_head else self.vocab_size * self.n_embd
        return self.matmul_parameters + norms + biases + tables

    @property
    def flops_per_token(self) -> int:
        """Return the floating-point operations of one training step, forward and backward, per token.

        6 per weight in a matrix product plus 12 x layers x width x context for attention: the convention of PaLM
        (arXiv 2204.02311, appendix B) and nanoGPT, which counts attention as if there were no causal mask.
        """
        return 6 * self.matmul_parameters + 12 * self.n_layer * self.n_embd * self.block_size
