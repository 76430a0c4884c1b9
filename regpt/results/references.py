"""Published figures that a reader holds a run against, each with what it was measured on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reference:
    """A published result of a model of GPT-2's size."""

    name: str
    validation_loss: float | None  # nats per token
    hellaswag: float | None  # accuracy
    data: str  # that the loss was measured on; losses on other data do not compare


FINEWEB_EDU = "FineWeb-Edu"

# OpenAI's GPT-2 124M, measured on FineWeb-Edu's validation shard by build-nanogpt; HellaSwag completion style.
GPT2 = Reference("GPT-2 124M (OpenAI)", 3.29, 0.294, FINEWEB_EDU)
GPT3_HELLASWAG = 0.337  # GPT-3 124M, table H.1 of Brown et al. 2020 (arXiv 2005.14165)
