"""Published results to compare a run with, each with the data and the metric of the measurement."""

from dataclasses import dataclass

from regpt.corpus.public_corpora import PublicCorpus


@dataclass(frozen=True)
class Reference:
    """A published result of a model of GPT-2's size."""

    name: str
    validation_loss: float | None  # nats per token
    hellaswag: float  # accuracy on all 10,042 items
    data: PublicCorpus  # on which the loss was measured; losses on other data do not compare
    scored: str = "by mean loss per token"  # how HellaSwag's choices are scored
    by_sum: float | None = None  # accuracy by summed loss


# OpenAI's GPT-2 124M, measured on FineWeb-Edu's validation shard by build-nanogpt; HellaSwag completion style.
GPT2 = Reference("GPT-2 124M (OpenAI)", 3.29, 0.294, PublicCorpus.FINEWEB_EDU, by_sum=0.2859)
GPT3 = Reference("GPT-3 124M (OpenAI)", None, 0.337, PublicCorpus.OTHER, scored="scored as in its paper")

# Public reruns of build-nanogpt on FineWeb-Edu 10BT, and of llm.c on FineWeb 10B: one change at a time.
RERUNS = (
    Reference("build-nanogpt rerun, LR 6e-4", 3.066, 0.304, PublicCorpus.FINEWEB_EDU),
    Reference("build-nanogpt rerun, LR 1.8e-3", 3.021, 0.315, PublicCorpus.FINEWEB_EDU),
    Reference("build-nanogpt rerun, LR 1.8e-3, shuffled", 3.005, 0.317, PublicCorpus.FINEWEB_EDU),
    Reference("build-nanogpt rerun, LR 1.8e-3, shuffled, RoPE", 2.987, 0.320, PublicCorpus.FINEWEB_EDU),
    Reference("llm.c on FineWeb 10B", 3.272, 0.299, PublicCorpus.FINEWEB),
)
REFERENCES = (GPT2, GPT3, *RERUNS)

CHANCE = 0.25  # of four endings
HELLASWAG_ITEMS = 10_042  # of the validation split
