"""Preparation on a cluster, by datatrove's local and Slurm executors.

Each task encodes every n-th file of the corpus into a file of tokens in the staging folder, which all machines see.
When all are there, one last task copies them into shards in order, as a preparation whose text is already encoded. The
dataset has the same bytes and the same digest as one prepared on one machine.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from regpt.base.errors import DataError, UserError
from regpt.base.files import sha256_of_json, write_json
from regpt.corpus.chunks import EncodedChunk
from regpt.corpus.corpora import Corpus, Part
from regpt.corpus.progress import NoPreparationProgress
from regpt.data.shard_writer import ShardFile
from regpt.data.shards import Manifest, read_json_or_empty, read_manifest
from regpt.data.tokenizer import NAME
from regpt.preparation.dataset import exclusive, finished_dataset, open_source, pieces_folder
from regpt.preparation.encoders import Encoders, Work, encoder_of
from regpt.preparation.job import Preparation
from regpt.preparation.state import Counts
from regpt.recipe.recipe import Recipe

Executor = Literal["local", "slurm"]

TOKENS_PER_CHUNK = 2_000_000  # of an encoded file that is copied into shards


class NotesOnStderr(NoPreparationProgress):
    """Prints notes, and nothing else."""

    def note(self, text: str) -> None:
        print(f"note: {text}", file=sys.stderr)


def prepare_on(executor: Executor, recipe: Recipe, tasks: int, options: dict[str, Any]) -> Manifest | None:
    """Prepare with a datatrove executor in `tasks` tasks; `options` are the executor's own.

    Return the manifest, at once if the dataset exists with the same settings; None with Slurm, where the jobs are only
    queued. Encoded files are not encoded again: after a kill, call it again. Raise DataError if datatrove is missing or
    does not accept the options.
    """
    refuse_conversations(executor, recipe)
    if (existing := finished_dataset(recipe, NotesOnStderr())) is not None:
        return existing
    try:
        from datatrove import executor as executors
    except ImportError:
        raise DataError("datatrove is not installed", "pip install 'regpt[cluster]'") from None
    executor_types = {"local": executors.LocalPipelineExecutor, "slurm": executors.SlurmPipelineExecutor}
    corpus = open_source(recipe)
    for note in corpus.notes:
        NotesOnStderr().note(note)
    tasks = min(tasks, len(corpus.parts))
    logs = logs_folder(recipe)
    check_counts(options)
    common: dict[str, Any] = {**options, "skip_completed": False}  # the tasks know which files are encoded
    if executor == "slurm":  # the jobs must find the programs of this Python first
        common = {"env_command": f'export PATH="{Path(sys.executable).parent}:$PATH"', **common}
    try:
        encoding = executor_types[executor](
            pipeline=[partial(encode_parts, recipe)],
            tasks=tasks,
            logging_dir=str(logs / "encode"),
            **job_name(executor, "regpt-encode"),
            **common,
        )
        sealing = executor_types[executor](
            pipeline=[partial(seal_pieces, recipe)],
            tasks=1,
            logging_dir=str(logs / "seal"),
            depends=encoding if executor == "slurm" else None,
            **job_name(executor, "regpt-seal"),
            **{**common, "workers": 1},
        )
    except TypeError as error:
        raise DataError(
            f"--executor {executor}: {str(error).split('__init__() ')[-1]}", "see docs/data.md for the options"
        ) from None
    problems = pieces_folder(recipe) / "problems"
    problems.mkdir(parents=True, exist_ok=True)
    for old in problems.iterdir():
        old.unlink()
    if executor == "slurm":
        sealing.run()  # queues both
        return None
    silence_datatrove()
    encoding.run()
    raise_first(problems)
    sealing.run()
    if not recipe.data.directory.exists():
        raise_first(problems)
    return read_manifest(recipe.data.directory)


def refuse_conversations(executor: Executor, recipe: Recipe) -> None:
    if recipe.data.format != "text":
        problem = f"--executor {executor} prepares text, but data.format = '{recipe.data.format}'"
        raise UserError(problem, "leave out --executor")


def check_counts(options: dict[str, Any]) -> None:
    """Raise DataError if an option that counts something is not a positive integer."""
    for name in ("workers", "cpus_per_task", "mem_per_cpu_gb"):
        if name in options and (type(options[name]) is not int or options[name] < 1):
            raise DataError(f"--option {name}={options[name]}: not a positive integer", f"for example {name}=2")


def silence_datatrove() -> None:
    """Turn off datatrove's lines on this console; jobs on other machines keep their logs."""
    from loguru import logger

    logger.disable("datatrove")


@contextmanager
def recorded_problem(recipe: Recipe, task: str) -> Iterator[None]:
    """Write a UserError of a task to a file, so that the process that waits for the task can raise it."""
    try:
        yield
    except UserError as error:
        problems = pieces_folder(recipe) / "problems"
        problems.mkdir(parents=True, exist_ok=True)
        write_json(problems / f"{task}.json", [error.problem, error.fix])
        print(f"error: {error}", file=sys.stderr)


def raise_first(problems: Path) -> None:
    for path in sorted(problems.glob("*.json")):
        problem, fix = json.loads(path.read_text(encoding="utf-8"))
        raise DataError(problem, fix)


def job_name(executor: Executor, name: str) -> dict[str, str]:
    return {"job_name": name} if executor == "slurm" else {}


def logs_folder(recipe: Recipe) -> Path:
    """Return the folder of datatrove's logs: next to the dataset, where all machines see it."""
    target = recipe.data.directory.resolve()
    return target.with_name(f"{target.name}-logs")


def piece_identity(part: Part, recipe: Recipe) -> str:
    """Return a hash of a part and the settings that change its tokens."""
    data = recipe.data
    encoder = encoder_of(data)
    values = [part.fingerprint(), encoder.record(), data.text_column]
    separator = [data.document_separator] if data.document_separator else []
    return sha256_of_json([*values, *separator, *([] if encoder.choice == NAME else [encoder.digest])])


# Encoding tasks


def encode_parts(recipe: Recipe, data: Any, rank: int, world_size: int) -> None:
    """Run task `rank` of `world_size`: encode the parts number rank, rank + world_size, and so on."""
    with recorded_problem(recipe, f"encode-{rank:05d}"):
        corpus = open_source(recipe)
        numbers = range(rank, len(corpus.parts), world_size)
        missing = [n for n in numbers if not Piece(pieces_folder(recipe), n).matches(corpus.parts[n], recipe)]
        for number, part in zip(missing, corpus.fetched(missing, NoPreparationProgress()), strict=True):
            encode_part(part, Piece(pieces_folder(recipe), number), recipe)
            part.cleanup()


def encode_part(part: Part, piece: Piece, recipe: Recipe) -> None:
    """Encode a file of text into a file of tokens. The file with the counts is written last and marks completion."""
    piece.tokens_path.parent.mkdir(parents=True, exist_ok=True)
    piece.counts_path.unlink(missing_ok=True)
    counts = Counts()
    encoder = encoder_of(recipe.data)
    file = ShardFile(piece.tokens_path, "train", expected=0, vocabulary=encoder.open().ids)
    work = (Work(part, chunk, starts_part=number == 0) for number, chunk in enumerate(part.chunks()))
    with closing(file.file), Encoders(1, encoder) as encoders:
        for _, encoded in encoders.encode(work, NoPreparationProgress()):
            assert encoded is not None
            file.append(encoded.tokens)
            counts = counts.plus(encoded)
        part.check_readable(counts.documents, Counter(counts.refused))
        shard = file.seal()
    write_json(
        piece.counts_path, {"identity": piece_identity(part, recipe), "sha256": shard.sha256, "counts": asdict(counts)}
    )


@dataclass(frozen=True)
class Piece:
    """The two files of an encoded part: its tokens and its counts."""

    folder: Path
    number: int

    @property
    def tokens_path(self) -> Path:
        return self.folder / f"{self.number:06d}.npy"

    @property
    def counts_path(self) -> Path:
        return self.folder / f"{self.number:06d}.json"

    def record(self) -> dict[str, Any]:
        """Return identity, sha256 and counts; nothing if the part is not encoded."""
        return read_json_or_empty(self.counts_path)

    def matches(self, part: Part, recipe: Recipe) -> bool:
        return self.record().get("identity") == piece_identity(part, recipe)


# The last task


def seal_pieces(recipe: Recipe, data: Any, rank: int, world_size: int) -> None:
    """Copy all encoded files into shards. Like any preparation it may be killed and called again."""
    one_worker = replace(recipe, data=replace(recipe.data, workers=1))
    with recorded_problem(recipe, "seal"), exclusive(recipe, NoPreparationProgress()):
        Preparation(one_worker, NoPreparationProgress(), partial(encoded_corpus, recipe)).run()


def encoded_corpus(recipe: Recipe) -> Corpus:
    """Return the corpus with encoded parts. Raise DataError if one is missing."""
    corpus = open_source(recipe)
    pieces = [Piece(pieces_folder(recipe), number) for number in range(len(corpus.parts))]
    for piece, part in zip(pieces, corpus.parts, strict=True):
        if not piece.matches(part, recipe):
            raise DataError(
                f"{part.name}: not encoded in {piece.folder}",
                "run the same command again: it encodes the missing files",
            )
    parts = tuple(
        EncodedPart(part.name, piece, piece.record()) for part, piece in zip(corpus.parts, pieces, strict=True)
    )
    return Corpus(corpus.description, parts, corpus.origin, corpus.notes)


@dataclass(frozen=True)
class EncodedPart:
    """A part whose text is already encoded."""

    name: str
    piece: Piece
    record: dict[str, Any]

    @property
    def size(self) -> int:
        return self.piece.tokens_path.stat().st_size

    @property
    def likely_text_bytes(self) -> float:
        return float(self.record["counts"]["text_bytes"])

    def fingerprint(self) -> list[Any]:
        return [self.name, self.record["sha256"]]

    def chunks(self) -> Iterator[EncodedChunk]:
        """Yield the tokens in chunks; the first one carries the counts of the whole part."""
        counts = Counts(**self.record["counts"])
        tokens = np.load(self.piece.tokens_path, mmap_mode="r")
        for first in range(0, max(1, len(tokens)), TOKENS_PER_CHUNK):
            ids = np.array(tokens[first : first + TOKENS_PER_CHUNK])
            if first == 0:
                whole = (counts.documents, counts.text_bytes, counts.longest_document_tokens, Counter(counts.refused))
                yield EncodedChunk(ids.nbytes, ids, *whole, end_marks=counts.end_marks)
            else:
                yield EncodedChunk(ids.nbytes, ids, 0, 0, 0, Counter())

    def check_readable(self, documents: int, refused: Counter[str]) -> None:
        pass

    def cleanup(self) -> None:
        pass
