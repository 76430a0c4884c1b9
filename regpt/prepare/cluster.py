"""Preparation on a cluster: datatrove's executors over one function a file, and one task at the end that cuts shards.

A task encodes every so-manieth file of the corpus into a piece, a file of tokens in the folder in the making, which all
machines must see. When all pieces are there, the last task copies them into shards, in order: a preparation whose text
is encoded already, so the data set has the same bytes and the same digest as one prepared on one machine.
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
from regpt.base.recipe import Recipe
from regpt.data.shards import Manifest, read_manifest
from regpt.prepare.corpora import Corpus, Part
from regpt.prepare.dataset import being_made, open_source, refuse_existing
from regpt.prepare.encoders import Encoded, Encoders, Ready, Work
from regpt.prepare.job import Preparation, folder_in_the_making, made_with
from regpt.prepare.progress import NoPreparationProgress
from regpt.prepare.sections import Chunk
from regpt.prepare.shard_writer import ShardFile
from regpt.prepare.state import Counts

Executor = Literal["local", "slurm", "ray"]

TOKENS_AT_A_TIME = 2_000_000  # of a piece, on its way into shards


def prepare_on(executor: Executor, recipe: Recipe, tasks: int, options: dict[str, Any]) -> Manifest | None:
    """Prepare by datatrove's executor of that name, in so many tasks; `options` are its own.

    Returns the manifest; None with Slurm, where the jobs are queued and the data set is there when the last has ended.
    Pieces that are whole are not made again: call it again after a kill. Raises DataError where datatrove is missing or
    does not take the options.
    """
    refuse_existing(recipe)
    try:
        from datatrove import executor as executors
    except ImportError:
        raise DataError("datatrove is not installed", "pip install 'regpt[cluster]'") from None
    kinds = {
        "local": executors.LocalPipelineExecutor,
        "slurm": executors.SlurmPipelineExecutor,
        "ray": executors.RayPipelineExecutor,
    }
    corpus = open_source(recipe)
    tasks = min(tasks, len(corpus.parts))
    logs = folder_of_logs(recipe)
    both: dict[str, Any] = {**numbers_of(options), "skip_completed": False}  # tasks know themselves what is done
    if executor == "slurm":  # the jobs find this Python's programs first
        both = {"env_command": f'export PATH="{Path(sys.executable).parent}:$PATH"', **both}
    try:
        encoding = kinds[executor](
            pipeline=[partial(encode_parts, recipe)],
            tasks=tasks,
            logging_dir=str(logs / "encode"),
            **job_name(executor, "regpt-encode"),
            **both,
        )
        sealing = kinds[executor](
            pipeline=[partial(seal_pieces, recipe)],
            tasks=1,
            logging_dir=str(logs / "seal"),
            depends=encoding if executor == "slurm" else None,
            **job_name(executor, "regpt-seal"),
            **{**both, "workers": 1},
        )
    except TypeError as error:
        raise DataError(
            f"--executor {executor}: {str(error).split('__init__() ')[-1]}",
            "docs/data.md shows the options that it takes",
        ) from None
    problems = folder_of_pieces(recipe) / "problems"
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


def numbers_of(options: dict[str, Any]) -> dict[str, Any]:
    """The options, those that count something checked."""
    for name in ("workers", "cpus_per_task", "mem_per_cpu_gb"):
        if name in options and (type(options[name]) is not int or options[name] < 1):
            raise DataError(f"--option {name}={options[name]}: is no whole number above 0", "mend it")
    return options


def silence_datatrove() -> None:
    """On this machine its lines on the console are in the way; jobs elsewhere keep their logs."""
    from loguru import logger

    logger.disable("datatrove")


@contextmanager
def problem_written_down(recipe: Recipe, task: str) -> Iterator[None]:
    """A user's error in a task is kept in a file: whoever waits for the task says it in one line."""
    try:
        yield
    except UserError as error:
        problems = folder_of_pieces(recipe) / "problems"
        problems.mkdir(parents=True, exist_ok=True)
        write_json(problems / f"{task}.json", [error.problem, error.fix])
        print(f"error: {error}", file=sys.stderr)


def raise_first(problems: Path) -> None:
    for path in sorted(problems.glob("*.json")):
        problem, fix = json.loads(path.read_text(encoding="utf-8"))
        raise DataError(problem, fix)


def job_name(executor: Executor, name: str) -> dict[str, str]:
    return {"job_name": name} if executor == "slurm" else {}


def folder_of_logs(recipe: Recipe) -> Path:
    """Where datatrove writes its logs: beside the data set, seen by all machines."""
    target = recipe.data.directory.resolve()
    return target.with_name(f"{target.name}-logs")


def identity(part: Part, recipe: Recipe) -> str:
    """Says whether a piece holds this part in these settings."""
    return sha256_of_json([part.fingerprint(), made_with(recipe), recipe.data.text_column])


# A task


def encode_parts(recipe: Recipe, data: Any, rank: int, world_size: int) -> None:
    """What one of `world_size` tasks does: encode parts number `rank`, `rank + world_size` and so on into pieces."""
    with problem_written_down(recipe, f"encode-{rank:05d}"):
        corpus = open_source(recipe)
        numbers = range(rank, len(corpus.parts), world_size)
        missing = [n for n in numbers if not Piece(folder_of_pieces(recipe), n).is_of(corpus.parts[n], recipe)]
        for number, part in zip(missing, corpus.fetched(missing, NoPreparationProgress()), strict=True):
            encode_part(part, Piece(folder_of_pieces(recipe), number), recipe)
            part.cleanup()


def folder_of_pieces(recipe: Recipe) -> Path:
    return folder_in_the_making(recipe.data.directory) / "pieces"


def encode_part(part: Part, piece: Piece, recipe: Recipe) -> None:
    """One file of text into one file of tokens, which is there whole or not at all."""
    piece.tokens_path.parent.mkdir(parents=True, exist_ok=True)
    piece.about_path.unlink(missing_ok=True)
    counts = Counts()
    file = ShardFile(piece.tokens_path, "train", expected=0)
    work = (Work(part, section, begins_part=number == 0) for number, section in enumerate(part.chunks()))
    with closing(file.file), Encoders(1, recipe.data.tokenizer_backend) as encoders:
        for _, encoded in encoders.encode(work, NoPreparationProgress()):
            assert encoded is not None
            file.append(encoded.tokens)
            counts = counts.plus(encoded)
        part.check_readable(counts.documents, Counter(counts.refused))
        shard = file.seal()
    write_json(piece.about_path, {"identity": identity(part, recipe), "sha256": shard.sha256, "counts": asdict(counts)})


@dataclass(frozen=True)
class Piece:
    """A part's tokens, and what came out besides."""

    folder: Path
    number: int

    @property
    def tokens_path(self) -> Path:
        return self.folder / f"{self.number:06d}.npy"

    @property
    def about_path(self) -> Path:
        return self.folder / f"{self.number:06d}.json"

    def about(self) -> dict[str, Any]:
        try:
            values: dict[str, Any] = json.loads(self.about_path.read_text(encoding="utf-8"))
            return values
        except (OSError, ValueError):
            return {}

    def is_of(self, part: Part, recipe: Recipe) -> bool:
        return self.about().get("identity") == identity(part, recipe)


# The last task


def seal_pieces(recipe: Recipe, data: Any, rank: int, world_size: int) -> None:
    """Copy all pieces into shards. May be killed and called again, like any preparation."""
    alone = replace(recipe, data=replace(recipe.data, workers=1))
    with problem_written_down(recipe, "seal"), being_made(recipe):
        Preparation(alone, NoPreparationProgress(), partial(corpus_of_pieces, recipe)).run()


def corpus_of_pieces(recipe: Recipe) -> Corpus:
    """The corpus, with pieces for its parts. Raises DataError where one is missing."""
    corpus = open_source(recipe)
    pieces = [Piece(folder_of_pieces(recipe), number) for number in range(len(corpus.parts))]
    for piece, part in zip(pieces, corpus.parts, strict=True):
        if not piece.is_of(part, recipe):
            raise DataError(
                f"{part.name}: its tokens are missing in {piece.folder}",
                "run the same command again: it encodes what is missing",
            )
    parts = tuple(PiecePart(part.name, piece, piece.about()) for part, piece in zip(corpus.parts, pieces, strict=True))
    return Corpus(corpus.description, parts, corpus.origin)


@dataclass(frozen=True)
class PiecePart:
    """A part whose text is encoded already."""

    name: str
    piece: Piece
    about: dict[str, Any]

    @property
    def size(self) -> int:
        return self.piece.tokens_path.stat().st_size

    @property
    def likely_text_bytes(self) -> float:
        return float(self.about["counts"]["text_bytes"])

    def fingerprint(self) -> list[Any]:
        return [self.name, self.about["sha256"]]

    def chunks(self) -> Iterator[Chunk]:
        """The tokens some at a time; with the first go the counts of all."""
        counts = Counts(**self.about["counts"])
        tokens = np.load(self.piece.tokens_path, mmap_mode="r")
        for first in range(0, max(1, len(tokens)), TOKENS_AT_A_TIME):
            some = np.array(tokens[first : first + TOKENS_AT_A_TIME])
            of_all = (counts.documents, counts.text_bytes, counts.longest_document_tokens, Counter(counts.refused))
            yield Ready(some.nbytes, Encoded(some, *(of_all if first == 0 else (0, 0, 0, Counter()))))

    def check_readable(self, documents: int, refused: Counter[str]) -> None:
        pass

    def cleanup(self) -> None:
        pass
