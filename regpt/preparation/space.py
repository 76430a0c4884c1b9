"""The disk space that a preparation needs."""

import shutil
from pathlib import Path

from regpt.base.errors import DataError
from regpt.base.format import byte_size
from regpt.corpus.corpora import Corpus
from regpt.corpus.progress import PreparationProgress
from regpt.preparation.state import PrepareState

TOKENS_PER_TEXT_BYTE = 1 / 4.2 * 1.05  # 4.2 bytes of English text per token (FineWeb has 4.5), and a margin
SPACE_NOTE_BYTES = 1_000_000_000  # of input: from this size on, the space that is needed is reported


def check_space(
    folder: Path, corpus: Corpus, state: PrepareState, bytes_per_token: int, progress: PreparationProgress
) -> None:
    """Raise DataError if the disk has no room for the rest of the work, with `bytes_per_token` on the disk."""
    # Once started, only the next part: how well the later ones are compressed is unknown.
    following = corpus.parts[state.part : state.part + 1]
    text_bytes = sum(part.likely_text_bytes for part in following) if state.done else corpus.likely_text_bytes
    shards = round(text_bytes * TOKENS_PER_TEXT_BYTE * bytes_per_token)
    downloads = corpus.bytes_to_fetch(state.part)
    free = shutil.disk_usage(folder).free
    if state.done == 0 and corpus.size > SPACE_NOTE_BYTES:
        at_a_time = f" and up to {byte_size(downloads)} of downloads at a time" if downloads else ""
        progress.note(f"about {byte_size(shards)} of shards{at_a_time} needed; {byte_size(free)} free")
    if shards + downloads > free:
        raise DataError(
            f"{folder.parent}: {byte_size(free)} free, about {byte_size(shards + downloads)} needed"
            f" ({byte_size(shards)} of shards, {byte_size(downloads)} of downloads)",
            "free some space, or set another data.path"
            + ("; finished work is kept for the next attempt" if state.done else ""),
        )
