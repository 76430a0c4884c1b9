"""A reproduction compares skipped steps by the kind and the numbers of their rejection."""

from dataclasses import replace

import pytest

from regpt.tracking.journal import SkippedRecord
from regpt.tracking.rejections import Rejection, RejectionKind
from regpt.training.reproduce import Divergence, first_difference

SPIKE = Rejection(kind=RejectionKind.LOSS_SPIKE, value=32.3412345678, limit=11.0812345678, deviations=20.0)


def skipped(reason: Rejection) -> SkippedRecord:
    return SkippedRecord(step=3, tokens=768, reason=reason, batch="60a4", seconds=0.5)


def test_reproduced_rejection_is_equal_to_the_last_digit() -> None:
    assert first_difference(skipped(SPIKE), skipped(replace(SPIKE))) is None
    other = replace(SPIKE, value=32.3412345679)
    found = first_difference(skipped(SPIKE), skipped(other))
    assert found == Divergence(3, "reason.value", 32.3412345678, 32.3412345679)


@pytest.mark.parametrize(
    ("field", "value"),
    [("kind", RejectionKind.GRADIENT_NORM_SPIKE), ("value", 32.36), ("limit", 11.09), ("deviations", 10.0)],
)
def test_reproduced_rejection_is_compared_in_every_field(field: str, value: object) -> None:
    for recorded in (SPIKE, SPIKE.rounded()):
        found = first_difference(skipped(recorded), skipped(replace(SPIKE, **{field: value})))
        assert found == Divergence(3, f"reason.{field}", getattr(recorded, field), value)


def test_reproduced_rejection_matches_four_recorded_digits() -> None:
    """Version 0.1 recorded the numbers of a spike with four digits."""
    assert SPIKE.rounded() == replace(SPIKE, value=32.34, limit=11.08)
    assert first_difference(skipped(SPIKE.rounded()), skipped(SPIKE)) is None
