"""The classes with which transformers opens a regpt model that neither GPT-2's nor Llama's class computes.

A copy lies in the exported directory, and transformers runs it with trust_remote_code=True. Versions 4 and 5.
"""

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from regpt.export.plain_model import PlainModel


class RegptConfig(PretrainedConfig):  # type: ignore[misc]
    """The settings of regpt's [model] in `regpt`; next to them a few that transformers asks for."""

    model_type = "regpt"

    def __init__(self, regpt: dict[str, Any] | None = None, **others: Any) -> None:
        self.regpt = regpt or {}
        super().__init__(**others)


class RegptForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """The model, with a cache of keys and values and with masks of padded batches."""

    config_class = RegptConfig
    base_model_prefix = "model"
    _no_split_modules = ["Block"]  # noqa: RUF012

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = PlainModel(SimpleNamespace(**config.regpt))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.token_embedding

    def get_output_embeddings(self) -> nn.Module | None:
        return self.model.head  # None where the embedding is the head

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.regpt["init_std"])

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """Return the logits after each token, and with labels the mean loss; labels of -100 are left out."""
        if past_key_values is None and use_cache:
            past_key_values = DynamicCache()
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        T = input_ids.shape[1]
        if position_ids is None:
            position_ids = torch.arange(past, past + T, device=input_ids.device)[None]
            if attention_mask is not None:  # padding has no position
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -T:]
        visible = visible_positions(attention_mask, past, T, input_ids.device)
        store = None if past_key_values is None else Store(past_key_values)
        logits = self.model(input_ids, position_ids, visible, store)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten().to(logits.device))
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)


class Store:
    """Keys and values in transformers' cache."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache

    def __call__(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self.cache.update(k, v, layer)
        return k, v


def visible_positions(mask: Tensor | None, past: int, T: int, device: torch.device) -> Tensor | None:
    """Return which positions each token sees: earlier ones that are no padding, and itself.  -> (B, 1, T, past + T)

    None where each token sees all earlier ones, which needs no mask.
    """
    is_plain = mask is None or bool(mask.all())
    if is_plain and (past == 0 or T == 1):
        return None
    S = past + T
    last = torch.arange(past, S, device=device)[:, None]
    places = torch.arange(S, device=device)[None]
    visible = (places <= last)[None, None]  # (1, 1, T, S)
    if mask is not None:
        visible = visible & mask[:, None, None, :S].bool() | (places == last)  # a row without any would be NaN
    return visible
