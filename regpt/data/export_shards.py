"""Write the shards of a dataset in the formats of other programs: llm.c's, and nanoGPT's without a header."""

import hashlib
from pathlib import Path
from typing import IO, Literal, get_args

from regpt.base.errors import DataError, writing_errors
from regpt.base.files import new_directory
from regpt.base.progress import NoProgress, Progress
from regpt.data.formats import DTYPE, llmc_header_bytes, opened
from regpt.data.import_shards import ByteCounter
from regpt.data.shard_writer import copy_tokenizer
from regpt.data.shards import PREPARE_AGAIN, SPLITS, Manifest, Shard, check_shard, read_manifest
from regpt.data.tokenizer import describe_tokenizer

ExportForm = Literal["llm.c", "nanogpt"]
EXPORT_FORMS = get_args(ExportForm)
BYTES_PER_READ = 1 << 22


def export_shards(directory: Path, into: Path, form: ExportForm, progress: Progress | None = None) -> Manifest:
    """Write a dataset into the new folder `into`; return its manifest.

    llm.c gets a .bin file for each shard, with the header of GPT-2's shards (uint16) or of Llama 3's (uint32). nanoGPT
    gets train.bin and val.bin, each of which holds all shards of a split. Every token is compared with the manifest.
    Raises DataError if `into` exists, if a shard has changed, or if nanoGPT cannot read the tokens.
    """
    manifest = read_manifest(directory)
    dtype = manifest.vocabulary.dtype
    if into.exists():
        raise DataError(f"{into}: exists already", "name a new folder: --into FOLDER")
    if form == "nanogpt" and dtype != DTYPE:
        raise DataError(
            f"{directory}: holds {dtype.name} tokens of {describe_tokenizer(manifest.tokenizer)}; nanoGPT reads"
            f" {DTYPE.name} only",
            "use --form llm.c",
        )
    counter = ByteCounter(sum(shard.tokens for shard in manifest.shards) * dtype.itemsize, progress or NoProgress())
    with new_directory(into) as made:
        if form == "llm.c":
            for shard in manifest.shards:
                path = (made / shard.name).with_suffix(".bin")
                with writing_errors(path), path.open("wb") as file:
                    file.write(llmc_header_bytes(shard.tokens, dtype))
                    copy_tokens(directory, manifest, shard, file, counter)
        else:
            for split in SPLITS:
                path = made / f"{split}.bin"
                with writing_errors(path), path.open("wb") as file:
                    for shard in manifest.of_split(split):
                        copy_tokens(directory, manifest, shard, file, counter)
        copy_tokenizer(directory, made)
    return manifest


def copy_tokens(directory: Path, manifest: Manifest, shard: Shard, file: IO[bytes], counter: ByteCounter) -> None:
    """Append the tokens of a shard to a file. Raises DataError if they are not those of the manifest."""
    path, digest = directory / shard.name, hashlib.sha256()
    header_bytes = check_shard(path, shard, manifest.vocabulary.dtype)
    with opened(path) as source:
        source.seek(header_bytes)
        while piece := source.read(BYTES_PER_READ):
            digest.update(piece)
            file.write(piece)
            counter.add(len(piece))
    if digest.hexdigest() != shard.tokens_sha256:
        raise DataError(f"{path}: its tokens are not those of the manifest", PREPARE_AGAIN)
