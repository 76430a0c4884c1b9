"""Predictions: their counts, and their file."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from regpt.tasks.catalog import BY_SUM, BY_TOKEN
from regpt.tracking.predictions import Predictions, read_predictions


@pytest.fixture
def predictions() -> Predictions:
    """Two items, the second with one choice fewer."""
    counts = np.array([[1, 2, 3], [2, 2, 0]])
    return Predictions(
        task="hellaswag",
        description="subset of 2 of 10 items",
        digest="d" * 64,
        dataset_size=10,
        published=True,
        truncated=1,
        numbers=np.array([3, 7]),
        kinds=("wikihow", "activitynet"),
        labels=np.array([2, 0]),
        losses=np.array([[3.0, 4.0, 4.5], [1.0, 2.0, np.inf]]),
        tokens=counts,
        bytes=counts * 4,
        characters=counts * 4,
    )


def test_predictions_file_keeps_the_keys_of_version_0_1(predictions: Predictions, tmp_path: Path) -> None:
    predictions.write(tmp_path / "predictions.parquet")
    metadata = json.loads(pq.read_schema(tmp_path / "predictions.parquet").metadata[b"regpt"])
    assert metadata == {
        "task": "hellaswag",
        "items": "subset of 2 of 10 items",
        "digest": "d" * 64,
        "of": 10,
        "published": True,
        "cut": 1,
    }


def test_predictions_file_reads_back_equal(predictions: Predictions, tmp_path: Path) -> None:
    predictions.write(tmp_path / "predictions.parquet")
    again = read_predictions(tmp_path / "predictions.parquet")
    for field in dataclasses.fields(Predictions):
        assert np.array_equal(getattr(again, field.name), getattr(predictions, field.name)), field.name


def test_predictions_counts_tell_subset_and_full_set(predictions: Predictions) -> None:
    assert (predictions.n_items, predictions.is_subset, predictions.is_full_set) == (2, True, False)
    whole = dataclasses.replace(predictions, dataset_size=2)
    assert (whole.n_items, whole.is_subset, whole.is_full_set) == (2, False, True)
    assert not dataclasses.replace(whole, published=False).is_full_set


def test_predictions_are_scored_by_each_metric(predictions: Predictions) -> None:
    assert predictions.chosen(BY_SUM).tolist() == [0, 0]
    assert predictions.chosen(BY_TOKEN).tolist() == [2, 0]
    assert predictions.accuracy(BY_TOKEN).value == 1.0
