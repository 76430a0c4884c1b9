"""Datasets of given documents, made of token ids without any text."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from regpt.data import tokenizer
from regpt.data.formats import LLMC_HEADER, LLMC_HEADER_BYTES, LLMC_MAGIC, LLMC_VERSION
from regpt.data.import_shards import find_shards, import_shards
from regpt.data.shards import Manifest

Documents = Sequence[Sequence[int]]
E = tokenizer.END_OF_TEXT


def dataset_of(
    folder: Path, validation: Documents, training: Documents, form: str = "npy", shard_tokens: int = 10**9
) -> Manifest:
    """Write both sides as shards of one format and import them: npy, llm.c, or nanogpt, with end tokens behind."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, documents in (("val", validation), ("train", training)):
        ids = [token for one in documents for token in ([*one, E] if form == "nanogpt" else [E, *one])]
        tokens = np.array(ids, dtype="<u2")
        for number, start in enumerate(range(0, len(tokens), shard_tokens)):
            write(folder, name, number, tokens[start : start + shard_tokens], form)
    return import_shards(folder, find_shards(folder, without_header=form == "nanogpt"), None)


def write(folder: Path, name: str, number: int, tokens: np.ndarray, form: str) -> None:
    if form == "npy":
        np.save(folder / f"{name}_{number:06}.npy", tokens)
        return
    header = np.zeros(LLMC_HEADER_BYTES // LLMC_HEADER.itemsize, dtype=LLMC_HEADER)
    header[:3] = LLMC_MAGIC, LLMC_VERSION, len(tokens)
    if form == "nanogpt":
        (folder / f"{name}.bin").write_bytes(tokens.tobytes())
    else:
        (folder / f"{name}_{number:06}.bin").write_bytes(header.tobytes() + tokens.tobytes())
