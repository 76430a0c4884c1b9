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

# Training tokens of data sets whose public preparation is known, by `data.source`. FineWeb-Edu's is build-nanogpt's.
KNOWN_TRAIN_TOKENS = {"hub:HuggingFaceFW/fineweb-edu/sample/10BT": 9_854_000_000}
