"""How far a preparation is: what came out so far, and what a later process needs to go on from there."""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from regpt.prepare.encoders import Encoded
from regpt.prepare.shard_writer import Written


@dataclass(frozen=True)
class Counts:
    """What came out so far, of the whole corpus or of one part."""

    documents: int = 0
    text_bytes: int = 0
    longest_document_tokens: int = 0
    tokens: int = 0
    refused: dict[str, int] = field(default_factory=dict)

    def plus(self, encoded: Encoded) -> "Counts":
        return Counts(
            self.documents + encoded.documents,
            self.text_bytes + encoded.text_bytes,
            max(self.longest_document_tokens, encoded.longest_document),
            self.tokens + len(encoded.tokens),
            dict(Counter(self.refused) + encoded.refused),
        )


@dataclass(frozen=True)
class Position:
    """How far a preparation is: everything that a later process needs to go on."""

    part: int = 0  # number of the part that is being read
    section: int = 0  # of its sections that are written
    done: int = 0  # bytes of the corpus
    before_part: int = 0  # bytes of the parts before
    counts: Counts = field(default_factory=Counts)
    of_part: Counts = field(default_factory=Counts)
    written: Written = field(default_factory=Written)
    seconds: float = 0.0
    attempts: int = 1

    def after(self, size: int, encoded: Encoded) -> "Position":
        """One section of `size` bytes further."""
        return replace(
            self,
            section=self.section + 1,
            done=self.done + size,
            counts=self.counts.plus(encoded),
            of_part=self.of_part.plus(encoded),
        )

    def after_part(self, size: int) -> "Position":
        """At the beginning of the next part. The sizes of sections are shares, which rounding may have bent."""
        end = self.before_part + size
        return replace(self, part=self.part + 1, section=0, done=end, before_part=end, of_part=Counts())

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Position":
        return Position(
            **{
                **values,
                "counts": Counts(**values["counts"]),
                "of_part": Counts(**values["of_part"]),
                "written": Written.from_json(values["written"]),
            }
        )
