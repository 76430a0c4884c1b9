"""Why steps were rejected: stored as values, read from journals of version 0.1 as well, worded in one place."""

import json
from pathlib import Path

import pytest

from regpt.tracking.journal import Journal, SkippedRecord, read_history
from regpt.tracking.rejections import Rejection, RejectionKind

SPIKES = {RejectionKind.LOSS_SPIKE, RejectionKind.GRADIENT_NORM_SPIKE}
# What version 0.1 recorded, and the same as values.
TEXTS = {
    "the loss is nan": Rejection(kind=RejectionKind.LOSS_NAN),
    "the loss is inf": Rejection(kind=RejectionKind.LOSS_INFINITE),
    "the norm of the gradients is nan": Rejection(kind=RejectionKind.GRADIENT_NORM_NAN),
    "the norm of the gradients is inf": Rejection(kind=RejectionKind.GRADIENT_NORM_INFINITE),
    "the loss is 32.34, above 11.08: 20 deviations over the usual": Rejection(
        kind=RejectionKind.LOSS_SPIKE, value=32.34, limit=11.08, deviations=20
    ),
    "the norm of the gradients is 1.235e+05, above 4.5: 7.5 deviations over the usual": Rejection(
        kind=RejectionKind.GRADIENT_NORM_SPIKE, value=123_500, limit=4.5, deviations=7.5
    ),
}


def skipped(reason: Rejection) -> SkippedRecord:
    return SkippedRecord(step=3, tokens=768, reason=reason, batch="60a4", seconds=0.5)


@pytest.mark.parametrize("kind", RejectionKind)
def test_rejection_is_read_as_it_was_written(tmp_path: Path, kind: RejectionKind) -> None:
    numbers = {"value": 32.3412345678901, "limit": 11.08123456789, "deviations": 20.0} if kind in SPIKES else {}
    record = skipped(Rejection(kind=kind, **numbers))
    Journal(tmp_path).write(record)
    assert read_history(tmp_path).skipped == [record]
    assert json.loads((tmp_path / "journal.jsonl").read_text())["reason"]["kind"] == kind


@pytest.mark.parametrize("text", TEXTS)
def test_rejection_of_version_0_1_is_read_from_its_text(tmp_path: Path, text: str) -> None:
    values = {"kind": "skipped", "step": 3, "tokens": 768, "reason": text, "batch": "60a4", "seconds": 0.5}
    (tmp_path / "journal.jsonl").write_text(json.dumps(values) + "\n")
    assert read_history(tmp_path).skipped == [skipped(TEXTS[text])]
    assert str(TEXTS[text]) == text


def test_rejection_texts_cover_every_kind() -> None:
    assert {rejection.kind for rejection in TEXTS.values()} == set(RejectionKind)
