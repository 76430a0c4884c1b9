"""The record of a search for duplicates: its definition, its counts, its file, and what they mean."""

import contextlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from regpt.base.files import write_json
from regpt.base.format import percent
from regpt.data.shards import Manifest, read_json_or_empty
from regpt.data.token_statistics import record

DUPLICATES_FILE = "duplicates.json"  # next to the manifest; not part of the digest
NEAR = 0.5  # the least containment of a near-duplicate
OVERLAP = 0.2  # the least containment that is reported
# Above one of these shares of the validation tokens the loss is partly memory.
MUCH = 0.01  # in documents that training has for the most part
MUCH_OVERLAP = 0.5  # in documents that overlap; functions of one program overlap by a fifth without being copies


@dataclass(frozen=True, kw_only=True)
class SplitDuplicates:
    """The number of validation documents of each kind (see `Kind`), and their tokens. Each document is of one kind."""

    validation_documents: int
    validation_tokens: int
    exact_documents: int
    exact_tokens: int
    near_documents: int
    near_tokens: int
    overlapping_documents: int
    overlapping_tokens: int
    repeated_documents: int
    repeated_tokens: int
    within_documents: int  # that are duplicates or near-duplicates of another validation document
    within_tokens: int
    shared_shingles: float  # the share of validation's shingles that occur anywhere in training

    @property
    def documents(self) -> int:
        """The duplicates and near-duplicates."""
        return self.exact_documents + self.near_documents

    @property
    def share(self) -> float:
        """Their share of the validation tokens."""
        return self.share_of(self.exact_tokens + self.near_tokens)

    @property
    def share_mostly_in_training(self) -> float:
        """The share of the validation tokens in duplicates, near-duplicates and repeated text."""
        return self.share_of(self.exact_tokens + self.near_tokens + self.repeated_tokens)

    @property
    def share_of_overlaps(self) -> float:
        """The share of the validation tokens in documents of which training has a fifth to a half."""
        return self.share_of(self.overlapping_tokens)

    def share_of(self, tokens: int) -> float:
        return tokens / max(1, self.validation_tokens)

    @staticmethod
    def from_json(values: Any) -> "SplitDuplicates":
        """Build from what a file stores; further entries are ignored. Raise ValueError if it is not a record."""
        return record(SplitDuplicates, values)

    def to_json(self) -> dict[str, Any]:
        """Return what a file stores."""
        return asdict(self)


def stored_duplicates(directory: Path, manifest: Manifest) -> SplitDuplicates | None:
    """Return the record of an earlier search in this dataset; None without one."""
    known = read_json_or_empty(directory / DUPLICATES_FILE)
    with contextlib.suppress(ValueError):
        if known.get("digest") == manifest.digest:
            return SplitDuplicates.from_json(known)
    return None


def store_duplicates(directory: Path, manifest: Manifest, found: SplitDuplicates) -> None:
    """Store a record next to the manifest, if the folder can be written."""
    with contextlib.suppress(OSError):
        write_json(directory / DUPLICATES_FILE, {"digest": manifest.digest, **found.to_json()})


def describe_duplicates(found: SplitDuplicates) -> str:
    """Say in one sentence how much of validation is in training."""
    if not found.documents:
        return "no validation document has the same tokens as one in training, and none is a near-duplicate"
    return (
        f"validation documents with the same tokens as one in training: {found.exact_documents:,};"
        f" near-duplicates: {found.near_documents:,}; together {percent(found.share)} of the validation tokens"
    )


def remedy(found: SplitDuplicates) -> str | None:
    """Say what the duplicates mean for the loss, and what to do; None where their share is small."""
    if found.share_mostly_in_training <= MUCH and found.share_of_overlaps <= MUCH_OVERLAP:
        return None
    return (
        f"{percent(found.share_mostly_in_training)} of the validation tokens are in documents that training has for the"
        f" most part, and {percent(found.share_of_overlaps)} in documents that it has in part, so the loss is partly"
        " memory. Remove duplicates from the text and prepare it again"
    )
