"""State of a preparation: the counts so far, and the position from which a later process resumes."""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from regpt.data.shard_writer import WrittenShards
from regpt.preparation.chunks import EncodedChunk


@dataclass(frozen=True)
class Counts:
    """What was encoded so far, of the whole corpus or of one part."""

    documents: int = 0
    text_bytes: int = 0  # UTF-8
    longest_document_tokens: int = 0  # with the end token
    tokens: int = 0
    refused: dict[str, int] = field(default_factory=dict)  # documents left out, by reason

    def plus(self, chunk: EncodedChunk) -> "Counts":
        return Counts(
            self.documents + chunk.documents,
            self.text_bytes + chunk.text_bytes,
            max(self.longest_document_tokens, chunk.longest_document),
            self.tokens + len(chunk.tokens),
            dict(Counter(self.refused) + chunk.refused),
        )


@dataclass(frozen=True)
class PrepareState:
    """Everything that a later process needs to resume a preparation. Saved as progress.json."""

    part: int = 0  # number of the part that is being read
    chunk: int = 0  # chunks of this part that are written
    done: int = 0  # bytes of the corpus
    before_part: int = 0  # bytes of the earlier parts
    counts: Counts = field(default_factory=Counts)
    of_part: Counts = field(default_factory=Counts)
    written: WrittenShards = field(default_factory=WrittenShards)
    seconds: float = 0.0  # of all attempts
    attempts: int = 1

    def after_chunk(self, chunk: EncodedChunk) -> "PrepareState":
        return replace(
            self,
            chunk=self.chunk + 1,
            done=self.done + chunk.size,
            counts=self.counts.plus(chunk),
            of_part=self.of_part.plus(chunk),
        )

    def after_part(self, size: int) -> "PrepareState":
        """Return the state at the start of the next part. `size` corrects the rounded sizes of the chunks."""
        end = self.before_part + size
        return replace(self, part=self.part + 1, chunk=0, done=end, before_part=end, of_part=Counts())

    @staticmethod
    def from_json(values: dict[str, Any]) -> "PrepareState":
        """Read the values of progress.json. Raise KeyError or TypeError if they are not those of a state.

        Version 0.1 called the chunk "section".
        """
        chunk = values["section"] if "section" in values else values["chunk"]
        return PrepareState(
            **{
                **{name: value for name, value in values.items() if name != "section"},
                "chunk": chunk,
                "counts": Counts(**values["counts"]),
                "of_part": Counts(**values["of_part"]),
                "written": WrittenShards.from_json(values["written"]),
            }
        )
