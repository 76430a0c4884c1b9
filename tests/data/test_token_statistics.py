"""Statistics of a split: values by hand and by SciPy, samples of long sides, the file next to the manifest."""

import json
from collections.abc import Callable
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.spatial import distance

from regpt.base.errors import DataError
from regpt.data import token_statistics, tokenizer
from regpt.data.import_shards import find_shards, import_shards
from regpt.data.shards import Manifest
from regpt.data.token_statistics import TokenStatistics, measure, statistics_of
from regpt.preparation.dataset import prepare
from regpt.recipe.recipe import Recipe

V, E = tokenizer.VOCABULARY, tokenizer.END_OF_TEXT
FILE = "statistics.json"
TRAINING = [E, 1, 2, 1, 2, 1, 3, E, 1, 2]
VALIDATION = [E, 1, 2, 7]


def imported(folder: Path, training: list[list[int]], validation: list[int]) -> Manifest:
    folder.mkdir(exist_ok=True)
    np.save(folder / "val_000000.npy", np.array(validation, dtype=np.uint16))
    for number, tokens in enumerate(training):
        np.save(folder / f"train_{number:06}.npy", np.array(tokens, dtype=np.uint16))
    return import_shards(folder, find_shards(folder), None)


def measured(folder: Path, training: list[list[int]], validation: list[int]) -> TokenStatistics:
    statistics = measure(folder, imported(folder, training, validation))
    assert statistics is not None
    return statistics


def random_text(seed: int, tokens: int, different: int = 50) -> list[int]:
    """Return documents of 1 to 199 tokens, some tokens more frequent than others."""
    rng = np.random.default_rng(seed)
    text = np.minimum(rng.geometric(4 / different, tokens), different).astype(np.int64)
    text[np.cumsum(rng.integers(1, 200, tokens // 50))[: tokens // 200]] = E
    text[0] = E
    return [int(token) for token in text]


def test_documents_of_a_split_by_hand(tmp_path: Path) -> None:
    training = measured(tmp_path, [[E, 1, 1, E, 1], [1, 1, E, 1]], VALIDATION).train
    assert (training.tokens, training.documents, training.sampled_tokens) == (9, 3, 9)
    assert training.mean_document == 3 and training.median_document == 3  # 3, 4 across two shards, 2


def test_entropies_of_a_split_by_hand(tmp_path: Path) -> None:
    statistics = measured(tmp_path, [TRAINING], VALIDATION)
    # 10 tokens: four times 1, three times 2, one 3, two ends
    assert statistics.train.entropy == pytest.approx(
        -(0.4 * log(0.4) + 0.3 * log(0.3) + 0.1 * log(0.1) + 0.2 * log(0.2))
    )
    # 9 pairs: E1 twice, 12 three times, 13, 21 twice, 3E
    assert statistics.train.conditional_entropy == pytest.approx((3 * log(4 / 3) + log(4)) / 9)
    assert statistics.validation.entropy == pytest.approx(log(4))
    assert statistics.validation.conditional_entropy == 0  # biased low: each pair occurs once


def test_cross_entropies_of_validation_by_hand(tmp_path: Path) -> None:
    statistics = measured(tmp_path, [TRAINING], VALIDATION)
    alone = {token: (count + 1) / (10 + V) for token, count in {E: 2, 1: 4, 2: 3, 3: 1, 7: 0}.items()}
    assert statistics.unigram_cross_entropy == pytest.approx(-sum(log(alone[token]) for token in VALIDATION) / 4)
    pairs = [
        (2 + 1 * alone[1]) / (2 + 1),  # E was followed twice, by one token
        (3 + 2 * alone[2]) / (4 + 2),  # 1 was followed four times, by two tokens
        (0 + 1 * alone[7]) / (2 + 1),  # 2 was followed twice, by one token, and not by 7
    ]
    assert statistics.bigram_cross_entropy == pytest.approx(-sum(map(log, pairs)) / 3)


def test_pair_after_an_unseen_token_has_its_frequency_alone(tmp_path: Path) -> None:
    statistics = measured(tmp_path, [TRAINING], [7, 1])
    assert statistics.bigram_cross_entropy == pytest.approx(-log(5 / (10 + V)))


def test_entropies_agree_with_scipy(tmp_path: Path) -> None:
    training, validation = random_text(1, 20_000), random_text(2, 3_000)
    statistics = measured(tmp_path, [training[:9_000], training[9_000:]], validation)
    counts = np.bincount(training, minlength=V)
    pairs = np.zeros((52, 52))
    names = np.where(np.array(training) == E, 51, training)
    np.add.at(pairs, (names[:-1], names[1:]), 1)
    assert statistics.train.entropy == pytest.approx(stats.entropy(counts))
    pairs = pairs[pairs.sum(axis=1) > 0]
    conditional = np.average(stats.entropy(pairs, axis=1), weights=pairs.sum(axis=1))
    assert statistics.train.conditional_entropy == pytest.approx(conditional)
    of_validation = np.bincount(validation, minlength=V)
    relative = stats.entropy(of_validation, counts + 1)  # normalizes both
    assert statistics.unigram_cross_entropy == pytest.approx(stats.entropy(of_validation) + relative)
    part, rest = token_statistics.two_parts(np.array(training, dtype=np.uint16), 3_000)
    for divergence, other in (
        (statistics.divergence, of_validation),
        (statistics.divergence_within_training, np.bincount(part, minlength=V)),
    ):
        assert divergence == pytest.approx(distance.jensenshannon(np.bincount(rest, minlength=V), other) ** 2)


def test_bigram_baseline_is_a_probability(tmp_path: Path) -> None:
    training = random_text(3, 500)
    pairs = token_statistics.pair_counts([np.array(training, dtype=np.uint16)])
    frequencies = np.bincount(training, minlength=V)
    for first in (1, 3, E, 999):
        codes = (np.arange(V) + first * V).astype(np.uint32)
        every = (token_statistics.Pairs(codes[n : n + 1], np.array([1])) for n in (*range(60), 1_000, E))
        total = sum(np.exp(-token_statistics.bigram_cross_entropy(frequencies, pairs, one)) for one in every)
        one_unseen = np.exp(
            -token_statistics.bigram_cross_entropy(
                frequencies, pairs, token_statistics.Pairs(codes[1_000:1_001], np.array([1]))
            )
        )
        assert total + (V - 62) * one_unseen == pytest.approx(1)


def test_divergence_shows_a_validation_of_other_text(tmp_path: Path) -> None:
    training = random_text(1, 20_000)
    same = measured(tmp_path / "same", [training], random_text(2, 3_000))
    other = measured(tmp_path / "other", [training], random_text(2, 3_000, different=30))
    assert 0.3 < same.divergence / same.divergence_within_training < 3
    assert other.divergence > 10 * other.divergence_within_training


def test_parts_of_training_are_from_everywhere_and_complete() -> None:
    text = np.arange(1_000, dtype=np.uint16)
    part, rest = token_statistics.two_parts(text, 100)
    assert sorted([*part.tolist(), *rest.tolist()]) == text.tolist()
    assert 80 <= len(part) <= 120 and part.min() < 100 and part.max() > 890
    assert abs(len(token_statistics.two_parts(text, 5_000)[0]) - 500) <= 62  # at most about half


def test_long_side_is_measured_from_all_its_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = [random_text(number, 30_000) for number in range(4)]
    whole = measured(tmp_path, shards, VALIDATION).train
    monkeypatch.setattr(token_statistics, "MOST_SAMPLED", {"train": 60_000, "val": 60_000})
    monkeypatch.setattr(token_statistics, "STRETCH", 2_000)
    sampled = measured(tmp_path / "again", shards, VALIDATION).train
    assert sampled.sampled_tokens == 60_000 and sampled.tokens == whole.tokens == 120_000
    assert sampled.mean_document == whole.mean_document
    assert sampled.median_document == pytest.approx(whole.median_document, rel=0.15)
    assert sampled.entropy == pytest.approx(whole.entropy, rel=0.01)
    shards[3] = [9] * 30_000  # a quarter of the text
    assert measured(tmp_path / "other", shards, VALIDATION).train.entropy < 0.9 * whole.entropy


def test_document_longer_than_a_stretch_does_not_look_short() -> None:
    stretch = np.array([1, E, 1, 1, 1, 1, 1, E, 1, 1], dtype=np.uint16)
    assert token_statistics.document_tokens(stretch, is_whole=True).tolist() == [6, 3]
    assert token_statistics.document_tokens(stretch, is_whole=False).tolist() == [6]


def test_bytes_per_token_are_those_of_the_text(tmp_path: Path) -> None:
    tokens = tokenizer.encode("Füße and feet").tolist()
    side = measured(tmp_path, [[E, *tokens]], VALIDATION).train
    assert side.bytes_per_token == pytest.approx(len("Füße and feet".encode()) / (len(tokens) + 1))


# The file


def test_preparation_and_import_store_the_statistics(tmp_path: Path, tiny: Recipe) -> None:
    manifest = prepare(tiny)
    stored = json.loads((tiny.data.directory / FILE).read_text())
    assert TokenStatistics.from_json(stored) == measure(tiny.data.directory, manifest)
    assert stored["train"]["tokens"] == manifest.tokens("train") and stored["digest"] == manifest.digest
    of_import = imported(tmp_path / "shards", [TRAINING], VALIDATION)
    known = TokenStatistics.from_json(json.loads((tmp_path / "shards" / FILE).read_text()))
    assert known == statistics_of(tmp_path / "shards", of_import)


@pytest.mark.parametrize("content", [None, "", "[]", '{"digest": 3}', "of another dataset", "damaged"])
def test_missing_or_foreign_statistics_are_measured_again(tmp_path: Path, content: str | None) -> None:
    manifest = imported(tmp_path, [TRAINING], VALIDATION)
    path, known = tmp_path / FILE, (tmp_path / FILE).read_text()
    values = json.loads(known)
    values |= {"digest": "0" * 64} if content == "of another dataset" else {"divergence": None}
    path.write_text(content if content in ("", "[]", '{"digest": 3}') else json.dumps(values))
    if content is None:
        path.unlink()
    assert statistics_of(tmp_path, manifest) == TokenStatistics.from_json(json.loads(known))
    assert path.read_text() == known


def test_stored_statistics_are_not_measured_again(tmp_path: Path) -> None:
    manifest = imported(tmp_path, [TRAINING], VALIDATION)
    (tmp_path / "train_000000.npy").unlink()
    assert statistics_of(tmp_path, manifest) is not None
    (tmp_path / FILE).unlink()
    assert statistics_of(tmp_path, manifest) is None


def test_folder_that_cannot_be_written_is_measured_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = imported(tmp_path, [TRAINING], VALIDATION)
    known = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).unlink()

    def refuse(path: Path, value: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(token_statistics, "write_json", refuse)
    assert statistics_of(tmp_path, manifest) == TokenStatistics.from_json(known)
    assert not (tmp_path / FILE).exists()


def test_side_without_tokens_has_no_statistics(tmp_path: Path) -> None:
    manifest = imported(tmp_path, [TRAINING], [])
    assert measure(tmp_path, manifest) is None and not (tmp_path / FILE).exists()


@pytest.mark.parametrize("damage", [lambda content: content[:-4], lambda content: content[:-2] + b"\xff\xff"])
def test_shard_that_differs_from_its_record_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    manifest = imported(tmp_path, [TRAINING], VALIDATION)
    path = tmp_path / "train_000000.npy"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"train_000000\.npy"):
        measure(tmp_path, manifest)


@pytest.mark.parametrize("value", [None, "3", True, float("nan"), float("inf")])
def test_record_with_a_value_that_is_no_number_is_refused(tmp_path: Path, value: object) -> None:
    known = measured(tmp_path, [TRAINING], VALIDATION).to_json()
    for broken in ({**known, "divergence": value}, {**known, "train": {**known["train"], "entropy": value}}):
        with pytest.raises(ValueError, match=r"divergence|entropy"):
            TokenStatistics.from_json(broken)
