"""The recipe's section [model]: the checks of its settings, the number of parameters and the FLOPs."""

from collections.abc import Iterator
from dataclasses import dataclass

from regpt.base.errors import Problem
from regpt.recipe.model_settings import ModelSettings
from regpt.recipe.schema import above_zero, at_least

GATE_CHANNELS = 32  # of the residual stream, from which the gates of value embeddings are computed (nanochat)


@dataclass(frozen=True, kw_only=True)
class ModelRecipe(ModelSettings):
    """The architecture of the model."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "n_layer", "n_head", "n_embd", "block_size", "vocab_size", "mlp_hidden")
        yield from self.head_problems()
        yield from self.rope_problems()
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

        yield from at_least(self, 0, "n_kv_head")
        if self.n_kv_head > 0 and self.n_head % self.n_kv_head:
            divisors = ", ".join(str(n) for n in range(1, self.n_head + 1) if self.n_head % n == 0)
            yield Problem(
                "model.n_kv_head",
                f"model.n_head = {self.n_head} is not divisible by model.n_kv_head = {self.n_kv_head};"
                f" choose one of {divisors}",
                ("model.n_head",),
            )

    def rope_problems(self) -> Iterator[Problem]:
        """Check that scaled rotary wavelengths have a rotary embedding and an order."""
        if self.rope_scaling == "none":
            return
        if self.positions != "rope":
            yield Problem(
                "model.rope_scaling",
                f"model.rope_scaling = '{self.rope_scaling}' needs model.positions = 'rope', not '{self.positions}'",
                ("model.positions",),
            )
        yield from above_zero(self, "rope_factor", "rope_low_frequency_factor", "rope_original_block_size")
        if self.rope_high_frequency_factor <= self.rope_low_frequency_factor:
            yield Problem(
                "model.rope_high_frequency_factor",
                f"model.rope_high_frequency_factor = {self.rope_high_frequency_factor} is not above"
                f" model.rope_low_frequency_factor = {self.rope_low_frequency_factor}",
                ("model.rope_low_frequency_factor",),
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
        """Return the width of the queries of all heads, which is that of what attention returns."""
        return self.n_head * self.head_width

    @property
    def kv_heads(self) -> int:
        """Return the number of heads of keys and values."""
        return self.n_kv_head or self.n_head

    @property
    def kv_width(self) -> int:
        """Return the width of the keys of all heads, which is that of the values."""
        return self.kv_heads * self.head_width

    @property
    def qkv_width(self) -> int:
        """Return the width of queries, keys and values together."""
        return self.attention_width + 2 * self.kv_width

    @property
    def has_qkv_bias(self) -> bool:
        """Return whether queries, keys and values have biases."""
        return self.bias or self.qkv_bias

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
        return self.n_embd * (self.qkv_width + self.attention_width) + mlps * self.mlp_parameters + router

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
        gates = len(self.layers_with_value_embeddings) * self.kv_heads * self.gate_channels
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
        biases = self.has_qkv_bias * self.qkv_width
        biases += self.bias * (self.n_embd + mlps_with_biases * (self.n_embd + self.expanded_width))
        tables = self.block_size * self.n_embd if self.positions == "learned" else 0
        tables += 0 if self.tied_head else self.vocab_size * self.n_embd
        tables += len(self.layers_with_value_embeddings) * self.vocab_size * self.kv_width
        scalars = self.n_layer * (2 * self.residual_scalars + self.value_residual)
        return self.matmul_parameters + self.idle_parameters + norms + self.n_layer * biases + tables + scalars

    @property
    def flops_per_token(self) -> int:
        """Return the floating-point operations of one training step, forward and backward, per token.

        6 per weight in a matrix product plus 12 x layers x width of the heads x context for attention: the convention
        of PaLM (arXiv 2204.02311, appendix B) and nanoGPT, which counts attention as if there were no causal mask.
        """
        return 6 * self.matmul_parameters + 12 * self.n_layer * self.attention_width * self.block_size
