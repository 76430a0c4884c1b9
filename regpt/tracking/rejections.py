"""Why the guard rejects a step: a kind and its numbers, as the journal stores them, and their wording."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any, Self

from regpt.tracking.old_journals import parse_reason


class RejectionKind(StrEnum):
    """What is wrong with a step. The value is the name in the journal."""

    LOSS_NAN = "loss_nan"
    LOSS_INFINITE = "loss_infinite"
    LOSS_SPIKE = "loss_spike"
    GRADIENT_NORM_NAN = "gradient_norm_nan"
    GRADIENT_NORM_INFINITE = "gradient_norm_infinite"
    GRADIENT_NORM_SPIKE = "gradient_norm_spike"


KIND_TEXT = {
    RejectionKind.LOSS_NAN: "the loss is nan",
    RejectionKind.LOSS_INFINITE: "the loss is inf",
    RejectionKind.LOSS_SPIKE: "the loss is",
    RejectionKind.GRADIENT_NORM_NAN: "the norm of the gradients is nan",
    RejectionKind.GRADIENT_NORM_INFINITE: "the norm of the gradients is inf",
    RejectionKind.GRADIENT_NORM_SPIKE: "the norm of the gradients is",
}


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """Why a step must not update the weights. Only a spike has numbers; all of them are finite."""

    kind: RejectionKind
    value: float | None = None  # the loss in nats per token, or the gradient norm
    limit: float | None = None  # of the value
    deviations: float | None = None  # of the limit above the median, in robust standard deviations

    def __str__(self) -> str:
        if self.value is None:
            return KIND_TEXT[self.kind]
        numbers = f"{self.value:.4g}, above {self.limit:.4g}: {self.deviations:g} deviations over the usual"
        return f"{KIND_TEXT[self.kind]} {numbers}"

    @classmethod
    def from_json(cls, stored: Mapping[str, Any] | str) -> Self:
        """Return a stored rejection; version 0.1 stored its text.

        Raises ValueError for an unknown kind or text.
        """
        values = parse_reason(stored) if isinstance(stored, str) else stored
        numbers = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        return cls(**{**numbers, "kind": RejectionKind(values["kind"])})

    def rounded(self) -> Self:
        """Return the rejection with the digits that version 0.1 recorded."""
        if self.value is None:
            return self
        value, limit = (float(f"{number:.4g}") for number in (self.value, self.limit))
        return replace(self, value=value, limit=limit, deviations=float(f"{self.deviations:g}"))
