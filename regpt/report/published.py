"""Published figures that a reader holds a run against, each with what it was measured on and how."""

from dataclasses import dataclass

FINEWEB_EDU = "FineWeb-Edu"
FINEWEB = "FineWeb"


@dataclass(frozen=True)
class Reference:
    """A published result of a model of GPT-2's size."""

    name: str
    validation_loss: float | None  # nats per token
    hellaswag: float  # accuracy on all 10,042 items
    data: str  # that the loss was measured on; losses on other data do not compare
    judged: str = "mean loss per token"  # how HellaSwag's endings were
    by_sum: float | None = None  # accuracy where they are judged by their summed loss


# OpenAI's GPT-2 124M, measured on FineWeb-Edu's validation shard by build-nanogpt; HellaSwag completion style.
GPT2 = Reference("GPT-2 124M (OpenAI)", 3.29, 0.294, FINEWEB_EDU, by_sum=0.2859)
GPT3 = Reference("GPT-3 124M (OpenAI)", None, 0.337, "", judged="as its paper does")

# Public reruns of build-nanogpt on FineWeb-Edu 10BT, and of llm.c on FineWeb 10B: one change at a time.
RERUNS = (
    Reference("rerun at 6e-4", 3.066, 0.304, FINEWEB_EDU),
    Reference("rerun at 1.8e-3", 3.021, 0.315, FINEWEB_EDU),
    Reference("rerun at 1.8e-3, shuffled", 3.005, 0.317, FINEWEB_EDU),
    Reference("rerun at 1.8e-3, shuffled, RoPE", 2.987, 0.320, FINEWEB_EDU),
    Reference("llm.c on FineWeb 10B", 3.272, 0.299, FINEWEB),
)
REFERENCES = (GPT2, GPT3, *RERUNS)

CHANCE = 0.25  # of four endings
ALL_ITEMS = "10,042 items"  # of HellaSwag's validation split, as a journal calls them
