"""A dataset of conversations: read, encoded, divided by whole conversations, packed and written with loss masks.

All conversations are in memory meanwhile, about three bytes for each token. A stopped preparation starts again.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from regpt.base.errors import DataError
from regpt.base.format import shown
from regpt.conversations.messages import BadRowError, RowProblem, messages_of
from regpt.conversations.packing import Row, pack
from regpt.conversations.reading import read_rows
from regpt.corpus.corpora import Corpus
from regpt.corpus.progress import PreparationProgress
from regpt.data.loss_masks import write_mask
from regpt.data.shard_writer import ShardFile, write_tokenizer
from regpt.data.shards import Manifest, Shard, Split
from regpt.data.validation_split import SplitRule, ValidationSplit, describe_rule
from regpt.recipe.recipe import Recipe
from regpt.recipe.sections import DataRecipe
from regpt.tokenization.chat_template import EncodedConversation, encode_conversation
from regpt.tokenization.chat_tokens import ChatTokenizer

NOTES = 5  # bad rows that are named one by one
ROWS_PER_UPDATE = 64
HASH = "blake2b-64"


@dataclass
class Encoded:
    """The conversations of a corpus, and counts of what was read."""

    conversations: list[EncodedConversation] = field(default_factory=list)
    text_bytes: int = 0  # UTF-8, of the messages
    cut: int = 0  # conversations cut to the length of a row
    refused: Counter[str] = field(default_factory=Counter)  # bad rows, by problem
    refused_in: dict[str, list[str]] = field(default_factory=dict)  # problem -> the places of the first ones

    @property
    def tokens(self) -> int:
        return sum(map(len, self.conversations))


def prepare_conversations(
    recipe: Recipe, corpus: Corpus, tokenizer: ChatTokenizer, folder: Path, progress: PreparationProgress
) -> Manifest:
    """Write the dataset of a corpus into `folder`, which exists; return its manifest.

    Raises DataError for a row that is no conversation, unless the recipe skips them, and if nothing is left for one of
    the two splits.
    """
    progress.started(corpus.description, corpus.size, 1)
    encoded = encode_all(recipe, corpus, tokenizer, progress)
    if not encoded.conversations:
        reasons = ", ".join(f"{count:,} rows: {problem}" for problem, count in encoded.refused.items()) or "no rows"
        raise DataError(f"data.source = '{recipe.data.source}' has no conversations ({reasons})", "name other files")
    held_out, training = divide(encoded.conversations, recipe.data)
    row_tokens = recipe.model.block_size
    shards: list[Shard] = []
    padding = 0
    splits: tuple[tuple[Split, list[EncodedConversation]], ...] = (("val", held_out), ("train", training))
    for split, conversations in splits:
        rows = list(pack(conversations, row_tokens, tokenizer.ids.end_of_text))
        padding += len(rows) * row_tokens - sum(map(len, conversations))
        shards += write_shards(rows, split, recipe.data, tokenizer, folder)
    write_tokenizer(tokenizer, folder)
    validation = ValidationSplit(
        rule=SplitRule.CONVERSATIONS,
        hash=HASH,
        documents=len({digest_of(one) for one in held_out}),
        largest_document=max(map(len, held_out)),
        held_out_documents=len(held_out),
        held_out_tokens=sum(map(len, held_out)),
        text_tokens=encoded.tokens,
        validation_tokens=sum(map(len, held_out)),
    )
    manifest = Manifest(
        tokenizer=tokenizer.record,
        source={
            "asked": recipe.data.source,
            "description": corpus.description,
            "parts": len(corpus.parts),
            **corpus.origin,
        },
        split_rule=describe_rule(validation, validation.validation_tokens),
        shards=tuple(shards),
        statistics=statistics(encoded, padding),
        validation=validation,
        row_tokens=row_tokens,
    )
    manifest.write(folder)
    return manifest


def encode_all(recipe: Recipe, corpus: Corpus, tokenizer: ChatTokenizer, progress: PreparationProgress) -> Encoded:
    """Read and encode all conversations. Raises DataError for the first bad row, unless the recipe skips them."""
    encoded, column = Encoded(), recipe.data.conversation_column
    for part in corpus.fetched(range(len(corpus.parts)), progress):
        size = tokens = text_bytes = 0
        for number, row in enumerate(read_rows(part.path, column)):  # type: ignore[attr-defined]  # of files only
            try:
                one, size_of_text = encode_row(row.value, column, recipe.model.block_size, tokenizer)
            except BadRowError as bad:
                handle_bad_row(encoded, bad, row.place, recipe.data.bad_rows == "skip", progress)
                continue
            encoded.cut += len(one) > recipe.model.block_size
            encoded.conversations.append(one.cut(recipe.model.block_size))
            encoded.text_bytes += size_of_text
            size, tokens, text_bytes = size + row.size, tokens + len(one), text_bytes + size_of_text
            if number % ROWS_PER_UPDATE == 0:
                progress.raise_if_stopped()
                progress.advanced(size, tokens, text_bytes)
                size = tokens = text_bytes = 0
        progress.advanced(size, tokens, text_bytes)
        part.cleanup()
    if encoded.cut:
        progress.note(
            f"cut to model.block_size = {recipe.model.block_size} tokens: {encoded.cut:,} of"
            f" {len(encoded.conversations):,} conversations"
        )
    return encoded


def encode_row(value: Any, column: str, most: int, tokenizer: ChatTokenizer) -> tuple[EncodedConversation, int]:
    """Return a row's tokens, uncut, and the bytes of its text. Raises BadRowError, also if no answer begins early."""
    if isinstance(value, BadRowError):
        raise value
    messages = messages_of(value, column)
    one = encode_conversation(messages, tokenizer)
    if not one.counted[:most].any():
        raise BadRowError(RowProblem.TOO_LONG, f"{len(one):,} tokens")
    small = replace(one, tokens=one.tokens.astype(tokenizer.ids.dtype))
    return small, sum(len(message.content.encode("utf-8", "replace")) for message in messages)


def handle_bad_row(encoded: Encoded, bad: BadRowError, place: str, skip: bool, progress: PreparationProgress) -> None:
    """Count a bad row and name the first ones, or raise DataError."""
    detail = f" ({shown(bad.detail)})" if bad.detail else ""
    if not skip:
        raise DataError(
            f"{place}: {bad.problem}{detail}",
            "repair or remove the row, or leave such rows out with data.bad_rows=skip",
        )
    if encoded.refused.total() < NOTES:
        progress.note(f"left out: {place}: {bad.problem}{detail}")
    encoded.refused[bad.problem.value] += 1
    places = encoded.refused_in.setdefault(bad.problem.value, [])
    if len(places) < NOTES:
        places.append(place)


def digest_of(conversation: EncodedConversation) -> bytes:
    """Return the hash by which a conversation is held out: equal conversations are on one side."""
    return hashlib.blake2b(conversation.tokens.astype("<u4").tobytes(), digest_size=8).digest()


def divide(
    conversations: Sequence[EncodedConversation], data: DataRecipe
) -> tuple[list[EncodedConversation], list[EncodedConversation]]:
    """Return the conversations that are held out and those for training, both in the order of the text.

    Those with the lowest hashes are held out, until they have `data.validation_tokens` tokens. Raises DataError if
    nothing is left to train on.
    """
    digests = [digest_of(one) for one in conversations]
    sizes: Counter[bytes] = Counter()
    for digest, one in zip(digests, conversations, strict=True):
        sizes[digest] += len(one)
    chosen: set[bytes] = set()
    held_out_tokens = 0
    for digest in sorted(sizes):
        if held_out_tokens >= data.validation_tokens:
            break
        chosen.add(digest)
        held_out_tokens += sizes[digest]
    if len(chosen) == len(sizes):
        raise DataError(
            f"data.source = '{data.source}' has {len(sizes):,} different conversations with {sizes.total():,} tokens;"
            f" data.validation_tokens = {data.validation_tokens} takes all of them",
            f"set data.validation_tokens={max(1, sizes.total() // 10)}, or use more conversations",
        )
    sides: tuple[list[EncodedConversation], list[EncodedConversation]] = ([], [])
    for digest, one in zip(digests, conversations, strict=True):
        sides[digest not in chosen].append(one)
    return sides


def write_shards(
    rows: Sequence[Row], split: Split, data: DataRecipe, tokenizer: ChatTokenizer, folder: Path
) -> Iterator[Shard]:
    """Write rows into shards of about `data.shard_tokens` tokens, with a mask for each; yield their records."""
    per_shard = max(1, data.shard_tokens // len(rows[0].tokens))
    for number, first in enumerate(range(0, len(rows), per_shard)):
        yield write_shard(rows[first : first + per_shard], split, number, tokenizer, folder)


def write_shard(rows: Iterable[Row], split: Split, number: int, tokenizer: ChatTokenizer, folder: Path) -> Shard:
    """Write one shard. A last token behind its rows is the target of the last input, which does not count."""
    end = tokenizer.ids.end_of_text
    tokens = np.concatenate([*(row.tokens for row in rows), np.array([end], dtype=np.int64)])
    counted = np.concatenate([*(row.counted for row in rows), np.zeros(1, dtype=np.bool_)])
    file = ShardFile(folder / f"{split}_{number:06d}.npy", split, len(tokens), vocabulary=tokenizer.ids)
    file.append(tokens)
    file.documents = sum(row.conversations for row in rows)
    return replace(file.seal(), mask_sha256=write_mask(file.path, counted))


def statistics(encoded: Encoded, padding: int) -> dict[str, Any]:
    """Return the statistics of the manifest."""
    tokens = encoded.tokens
    return {
        "documents": len(encoded.conversations),
        "text_bytes": encoded.text_bytes,
        "tokens": tokens,
        "bytes_per_token": round(encoded.text_bytes / tokens, 4),
        "longest_document_tokens": max(map(len, encoded.conversations)),
        "refused": dict(sorted(encoded.refused.items())),
        **({"refused_in": encoded.refused_in} if encoded.refused else {}),
        "counted_tokens": int(sum(one.counted.sum() for one in encoded.conversations)),
        "padding_tokens": padding,
        "cut": encoded.cut,
    }
