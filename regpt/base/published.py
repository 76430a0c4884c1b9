"""The recipe's section [published]: results that somebody else published for it."""

from collections.abc import Iterator
from dataclasses import dataclass

from regpt.base.errors import Problem
from regpt.base.schema import at_least, setting


@dataclass(frozen=True, kw_only=True)
class PublishedRecipe:
    """Results that someone published for this recipe. They never change a run."""

    origin: str = setting("", "Source of the published results.", on_resume="free")
    hardware: str = setting("", "Hardware of the published run.", on_resume="free")
    hours: float = setting(0.0, "Training time of the published run in hours; 0: not published.", on_resume="free")
    cost_usd: float = setting(-1.0, "Cost of the published run in USD; negative: not published.", on_resume="free")
    validation_loss: float = setting(
        0.0, "Published validation loss in nats per token; 0: not published.", on_resume="free"
    )
    hellaswag: float = setting(0.0, "Published HellaSwag accuracy, from 0 to 1; 0: not published.", on_resume="free")

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 0, "hours", "validation_loss")
        if not 0.0 <= self.hellaswag <= 1.0:
            yield Problem(
                "published.hellaswag", f"published.hellaswag = {self.hellaswag} is not an accuracy between 0 and 1"
            )
