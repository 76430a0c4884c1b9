"""Predictions of a model on a multiple-choice task, item by item: scored by any metric, stored as a parquet file."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regpt.base.errors import DataError
from regpt.base.files import flush_directory, flush_file
from regpt.base.format import with_error
from regpt.tasks.catalog import BY_BYTE, BY_CHARACTER, BY_SUM, BY_TOKEN, METRICS, TASKS, Metric


@dataclass(frozen=True)
class Accuracy:
    """The share of correct predictions, and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return with_error(self.value, self.error)


@dataclass(frozen=True)
class Predictions:
    """The predictions for N items with up to K choices. A missing choice has infinite loss, and 0 in the counts."""

    task: str
    description: str  # such as '10,042 items'; wording only, decisions use the counts
    digest: str  # of the items' texts and labels
    dataset_size: int  # items in the whole dataset
    published: bool  # whether the items are from the published dataset
    truncated: int  # items whose context was cut at its start, because the model's block is too short
    numbers: NDArray[np.int64]  # (N), rows of the dataset
    kinds: tuple[str, ...]  # (N)
    labels: NDArray[np.int64]  # (N)
    losses: NDArray[np.float64]  # (N, K), summed over the tokens of the choice, nats
    tokens: NDArray[np.int64]  # (N, K)
    bytes: NDArray[np.int64]  # (N, K)
    characters: NDArray[np.int64]  # (N, K)

    @property
    def n_items(self) -> int:
        return len(self.labels)

    @property
    def is_subset(self) -> bool:
        return self.n_items < self.dataset_size

    @property
    def is_full_set(self) -> bool:
        """Whether these are all items of the published dataset."""
        return self.published and not self.is_subset

    @property
    def file_name(self) -> str:
        """Name of the parquet file: a subset and the user's own items have names of their own."""
        own = "" if self.published else f"-own-{self.digest[:8]}"
        return f"{self.task}{own}{f'-{self.n_items}' if self.is_subset else ''}.parquet"

    @property
    def non_finite(self) -> int:
        """Number of items with a NaN loss."""
        return int(np.isnan(self.losses).any(axis=1).sum())

    def chosen(self, metric: Metric) -> NDArray[np.int64]:
        """Return the likeliest choice of each item by a metric, the first of equal ones; -1 for a NaN loss.  (N)"""
        per = {BY_TOKEN: self.tokens, BY_SUM: np.ones(1), BY_BYTE: self.bytes, BY_CHARACTER: self.characters}[metric]
        best = np.argmin(self.losses / np.maximum(per, 1), axis=1)
        return np.where(np.isnan(self.losses).any(axis=1), -1, best)

    def right(self, metric: Metric) -> NDArray[np.bool_]:
        """Return whether each item is predicted correctly.  (N)"""
        return self.chosen(metric) == self.labels

    def accuracy(self, metric: Metric) -> Accuracy:
        """Return the accuracy with the standard error sqrt(p (1 - p) / (N - 1)), as lm-eval computes it."""
        right = self.right(metric)
        share = float(right.mean())
        return Accuracy(share, float(np.sqrt(share * (1 - share) / max(1, len(right) - 1))))

    @property
    def guessing(self) -> float:
        """The expected accuracy of a random choice: the mean of 1 / number of choices."""
        return float((1 / (self.tokens > 0).sum(axis=1)).mean())

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics of the task; the first is the primary one, which alone is tested."""
        return TASKS[self.task].metrics if self.task in TASKS else tuple(METRICS.values())

    def write(self, path: Path) -> None:
        """Write a parquet file with a row per item and the common values in the schema's metadata, atomically."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns: dict[str, object] = {"number": self.numbers, "kind": list(self.kinds), "label": self.labels}
        for name, values in self.by_choice().items():
            columns[name] = [row[tokens > 0] for row, tokens in zip(values, self.tokens, strict=True)]
        for metric in self.metrics:
            columns[f"right_{metric.name}"] = self.right(metric)
        metadata = {  # the keys are those of version 0.1
            "task": self.task,
            "items": self.description,
            "digest": self.digest,
            "of": self.dataset_size,
            "published": self.published,
            "cut": self.truncated,
        }
        table = pa.table(columns).replace_schema_metadata({"regpt": json.dumps(metadata)})
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            pq.write_table(table, temporary, compression="zstd")
            flush_file(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        flush_directory(path.parent)

    def by_choice(self) -> dict[str, NDArray[np.int64] | NDArray[np.float64]]:
        return {"loss": self.losses, "tokens": self.tokens, "bytes": self.bytes, "characters": self.characters}


def read_predictions(path: Path) -> Predictions:
    """Read a file of predictions. Raise DataError if it is missing, damaged or something else."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        metadata = json.loads((table.schema.metadata or {})[b"regpt"])
        columns = {name: table.column(name).to_pylist() for name in table.column_names}
        return Predictions(
            task=metadata["task"],
            description=metadata["items"],
            digest=metadata["digest"],
            dataset_size=metadata["of"],
            published=metadata["published"],
            truncated=metadata["cut"],
            numbers=np.array(columns["number"], dtype=np.int64),
            kinds=tuple(columns["kind"]),
            labels=np.array(columns["label"], dtype=np.int64),
            losses=filled(columns["loss"], np.inf),
            tokens=filled(columns["tokens"], 0).astype(np.int64),
            bytes=filled(columns["bytes"], 0).astype(np.int64),
            characters=filled(columns["characters"], 0).astype(np.int64),
        )
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        raise DataError(f"{path}: not a file of predictions, or damaged", "run `regpt evaluate` again") from None


def filled(rows: Sequence[Sequence[float]], absent: float) -> NDArray[np.float64]:
    """Return rows of unequal length as one array, padded with `absent`."""
    longest = max(len(row) for row in rows)
    return np.array([[*row, *[absent] * (longest - len(row))] for row in rows], dtype=np.float64)
