"""State of a preparation: the counts so far, and the position from which a later process resumes."""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from regpt.base.errors import DataError
from regpt.corpus.chunks import EncodedChunk
from regpt.corpus.notes import NAMES_SHOWN
from regpt.data.shard_writer import WrittenShards


@dataclass(frozen=True)
class Counts:
    """What was encoded so far, of the whole corpus or of one part."""

    documents: int = 0
    text_bytes: int = 0  # UTF-8
    longest_document_tokens: int = 0  # with the end token
    tokens: int = 0
    refused: dict[str, int] = field(default_factory=dict)  # documents left out, by reason
    end_marks: int = 0  # how often <|endoftext|> stands in the text
    last_document: int = 0  # tokens of the last document so far; the next chunk may continue it

    def plus(self, chunk: EncodedChunk) -> "Counts":
        continued = self.last_document + chunk.continued
        return Counts(
            self.documents + chunk.documents,
            self.text_bytes + chunk.text_bytes,
            max(self.longest_document_tokens, chunk.longest_document, continued if chunk.continued else 0),
            self.tokens + len(chunk.tokens),
            dict(Counter(self.refused) + chunk.refused),
            self.end_marks + chunk.end_marks,
            chunk.last_document if chunk.documents else continued,
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
    refused_in: dict[str, list[str]] = field(default_factory=dict)  # reason -> the first parts that had such documents
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

    def after_part(self, name: str, size: int) -> "PrepareState":
        """Return the state at the start of the next part. `size` corrects the rounded sizes of the chunks."""
        end = self.before_part + size
        first = {reason: self.refused_in.get(reason, []) for reason in self.of_part.refused}
        named = {reason: [*names, name] for reason, names in first.items() if len(names) < NAMES_SHOWN}
        return replace(
            self,
            part=self.part + 1,
            chunk=0,
            done=end,
            before_part=end,
            of_part=Counts(),
            refused_in={**self.refused_in, **named},
        )

    def statistics(self) -> dict[str, Any]:
        """Return the statistics of the manifest. Raise ZeroDivisionError without tokens."""
        counts = self.counts
        return {
            "documents": counts.documents,
            "text_bytes": counts.text_bytes,
            "tokens": counts.tokens,
            "bytes_per_token": round(counts.text_bytes / counts.tokens, 4),
            "longest_document_tokens": counts.longest_document_tokens,
            "refused": dict(sorted(counts.refused.items())),
            **({"refused_in": self.refused_in} if counts.refused else {}),
            **({"end_marks": counts.end_marks} if counts.end_marks else {}),
        }

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


def refuse_other_tokenizer(folder: Path, before: Any, own: dict[str, Any], choice: str) -> None:
    """Raise DataError if an earlier attempt used another tokenizer, `before`: its work is not lost in silence."""
    if before == own:
        return
    name = before.get("name") if isinstance(before, dict) else before
    raise DataError(
        f"{folder}: an earlier attempt used the tokenizer {name}, the recipe asks for data.tokenizer = '{choice}'",
        "continue it with its data.tokenizer, set another data.path, or delete that folder",
    )
