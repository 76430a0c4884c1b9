"""A model's answers to a task, item by item: judged by any rule, kept as a parquet file, read again."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regpt.base.errors import DataError
from regpt.base.files import flush_directory, flush_file
from regpt.tasks.catalog import BY_BYTE, BY_CHARACTER, BY_SUM, BY_TOKEN, METRICS, TASKS, Metric


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers, and the standard error of that share."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {self.error:.4f}"


@dataclass(frozen=True)
class Predictions:
    """N items with up to K endings. Where an item has fewer, the loss is infinite and the rest 0."""

    task: str
    items: str  # in words: how many, and of what
    digest: str  # of their texts and labels
    of: int  # items of the whole set
    published: bool  # whether these are of the published set
    cut: int  # items whose beginning was left out, because the model's block is too short
    numbers: NDArray[np.int64]  # (N), rows of the data set
    kinds: tuple[str, ...]  # (N)
    labels: NDArray[np.int64]  # (N)
    losses: NDArray[np.float64]  # (N, K), summed over the ending's tokens, nats
    tokens: NDArray[np.int64]  # (N, K)
    bytes: NDArray[np.int64]  # (N, K)
    characters: NDArray[np.int64]  # (N, K)

    @property
    def is_subset(self) -> bool:
        return len(self.labels) < self.of

    @property
    def file_name(self) -> str:
        """Where it is kept: a subset beside the whole, and somebody's own items beside the published."""
        own = "" if self.published else f"-own-{self.digest[:8]}"
        return f"{self.task}{own}{f'-{len(self.labels)}' if self.is_subset else ''}.parquet"

    @property
    def non_finite(self) -> int:
        """Items with a loss that is no number."""
        return int(np.isnan(self.losses).any(axis=1).sum())

    def chosen(self, rule: Metric) -> NDArray[np.int64]:
        """The ending that the rule finds likeliest, the first of equal ones; -1 where a loss is no number.  (N)"""
        per = {BY_TOKEN: self.tokens, BY_SUM: np.ones(1), BY_BYTE: self.bytes, BY_CHARACTER: self.characters}[rule]
        best = np.argmin(self.losses / np.maximum(per, 1), axis=1)
        return np.where(np.isnan(self.losses).any(axis=1), -1, best)

    def right(self, rule: Metric) -> NDArray[np.bool_]:
        """(N)"""
        return self.chosen(rule) == self.labels

    def accuracy(self, rule: Metric) -> Accuracy:
        """With the standard error of a mean, sqrt(p (1 - p) / (N - 1)), as lm-eval gives it."""
        right = self.right(rule)
        share = float(right.mean())
        return Accuracy(share, float(np.sqrt(share * (1 - share) / max(1, len(right) - 1))))

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """By which the task is judged; the first is the one that is meant where there is one number."""
        return TASKS[self.task].metrics if self.task in TASKS else tuple(METRICS.values())

    def write(self, path: Path) -> None:
        """A row for each item; what they have in common in the schema's metadata. Whole or not there."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns: dict[str, object] = {"number": self.numbers, "kind": list(self.kinds), "label": self.labels}
        for name, values in self.by_ending().items():
            columns[name] = [row[of > 0] for row, of in zip(values, self.tokens, strict=True)]
        for rule in self.metrics:
            columns[f"right_{rule.name}"] = self.right(rule)
        about = {name: getattr(self, name) for name in ("task", "items", "digest", "of", "published", "cut")}
        table = pa.table(columns).replace_schema_metadata({"regpt": json.dumps(about)})
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            pq.write_table(table, beside, compression="zstd")
            flush_file(beside)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        flush_directory(path.parent)

    def by_ending(self) -> dict[str, NDArray[np.int64] | NDArray[np.float64]]:
        return {"loss": self.losses, "tokens": self.tokens, "bytes": self.bytes, "characters": self.characters}


def read_predictions(path: Path) -> Predictions:
    """Read what `write` wrote. Raises DataError where it is missing or something else."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        about = json.loads((table.schema.metadata or {})[b"regpt"])
        columns = {name: table.column(name).to_pylist() for name in table.column_names}
        return Predictions(
            task=about["task"],
            items=about["items"],
            digest=about["digest"],
            of=about["of"],
            published=about["published"],
            cut=about["cut"],
            numbers=np.array(columns["number"], dtype=np.int64),
            kinds=tuple(columns["kind"]),
            labels=np.array(columns["label"], dtype=np.int64),
            losses=filled(columns["loss"], np.inf),
            tokens=filled(columns["tokens"], 0).astype(np.int64),
            bytes=filled(columns["bytes"], 0).astype(np.int64),
            characters=filled(columns["characters"], 0).astype(np.int64),
        )
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        raise DataError(f"{path}: holds no answers, or is not whole", "run `regpt evaluate` again") from None


def filled(rows: Sequence[Sequence[float]], absent: float) -> NDArray[np.float64]:
    """Rows of unequal length as one array."""
    longest = max(len(row) for row in rows)
    return np.array([[*row, *[absent] * (longest - len(row))] for row in rows], dtype=np.float64)
