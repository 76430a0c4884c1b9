"""Duplicates across a split: planted ones, real cases, and every number against a slow implementation with sets."""

import json
import re
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regpt.base.errors import DATA
from regpt.cli.main import main
from regpt.data.formats import DTYPE
from regpt.inspection import duplicates
from regpt.inspection.duplicate_record import DUPLICATES_FILE, SplitDuplicates, remedy, stored_duplicates
from regpt.inspection.duplicates import Findings, Kind, Matcher, Search
from regpt.inspection.shingle_index import FEWEST, MOST, SHARE, ShingleIndex
from regpt.inspection.shingles import PIECE, SHINGLE, hashed
from regpt.preparation.dataset import prepare
from tests.conftest import tiny_recipe
from tests.helpers.token_datasets import Documents, E, dataset_of

Document = list[int]


def random_document(seed: int, tokens: int) -> Document:
    return np.random.default_rng(seed).integers(0, 20_000, tokens).tolist()  # type: ignore[no-any-return]


def unrelated(number: int, tokens: int = 100, seed: int = 1_000) -> list[Document]:
    return [random_document(seed + n, tokens) for n in range(number)]


def found_in(folder: Path, validation: Documents, training: Documents, form: str = "npy") -> Findings:
    search = Search(folder, dataset_of(folder, validation, training, form))
    return search.run(search.build_index())


def kinds(found: Findings) -> dict[int, Kind]:
    return {match.validation: match.kind for match in found.across}


# Against sets


class Expected(NamedTuple):
    containment: list[float]  # of each validation document in one training document
    kinds: list[Kind]
    within: list[Kind]
    shared: float


def shingles_of(document: Document) -> set[tuple[int, ...]]:
    return {tuple(document[n : n + SHINGLE]) for n in range(len(document) - SHINGLE + 1)}


def expected_of(validation: list[Document], training: list[Document]) -> Expected:
    """Compare every pair of documents by their sets of shingles."""
    own, theirs = [shingles_of(one) for one in validation], [shingles_of(one) for one in training]
    frequency = Counter(shingle for one in own for shingle in one)
    limit = max(FEWEST, min(MOST, len(validation) // SHARE))
    anywhere = set().union(*theirs)

    def best(number: int, others: list[set[tuple[int, ...]]]) -> float:
        distinctive = {shingle for shingle in own[number] if frequency[shingle] <= limit}
        return max((len(distinctive & other) / len(distinctive) for other in others if distinctive), default=0.0)

    def kind(number: int, containment: float, is_exact: bool, seen: set[tuple[int, ...]]) -> Kind:
        if is_exact or containment >= 0.2:
            return Kind.EXACT if is_exact else Kind.NEAR if containment >= 0.5 else Kind.OVERLAP
        repeated = sum(frequency[shingle] > limit for shingle in own[number])
        is_repeated = 2 * repeated > len(own[number]) and 2 * len(own[number] & seen) >= len(own[number])
        return Kind.REPEATED if is_repeated else Kind.NOTHING

    containment = [best(n, theirs) for n in range(len(own))]
    apart = [[other for m, other in enumerate(own) if m != n] for n in range(len(own))]
    copies = [[one for m, one in enumerate(validation) if m != n] for n in range(len(own))]
    return Expected(
        containment,
        [kind(n, containment[n], validation[n] in training, anywhere) for n in range(len(own))],
        [kind(n, best(n, apart[n]), validation[n] in copies[n], set()) for n in range(len(own))],
        sum(len(one & anywhere) for one in own) / max(1, sum(map(len, own))),
    )


def assert_as_expected(validation: list[Document], training: list[Document], size: int) -> None:
    """`size` tokens are read at a time."""
    stream = {name: [t for one in side for t in (E, *one)] for name, side in (("v", validation), ("t", training))}

    def pieces(name: str) -> list[np.ndarray]:
        return [np.array(stream[name][n : n + size], dtype=DTYPE) for n in range(0, len(stream[name]), size)]

    index = ShingleIndex.build(hashed(iter(pieces("v"))))
    across, within = Matcher(index), Matcher(index, excludes_itself=True)
    for piece in hashed(iter(pieces("t"))):
        across.add(piece)
    for piece in hashed(iter(pieces("v"))):
        within.add(piece)
    expected = expected_of(validation, training)
    assert across.containment.tolist() == expected.containment
    assert across.kinds().tolist() == expected.kinds
    own = [kind if kind >= Kind.OVERLAP else Kind.NOTHING for kind in within.kinds().tolist()]
    assert own == [kind if kind >= Kind.OVERLAP else Kind.NOTHING for kind in expected.within]
    if len(index.documents):
        assert index.frequency @ across.is_seen / len(index.documents) == pytest.approx(expected.shared)
    for match in across.matches():
        other = training[match.other - 1]
        assert stream["t"][match.other_start : match.other_start + len(other)] == other
        assert match.kind is not Kind.EXACT or other == validation[match.validation - 1]


def pasted(rng: np.random.Generator, pool: list[Document], number: int) -> list[Document]:
    """Return documents that are cut out of a common pool and pasted together, so that many share a part."""
    made = []
    for _ in range(number):
        parts = [pool[n] for n in rng.integers(0, len(pool), rng.integers(1, 5))]
        cuts = [sorted(rng.integers(0, len(part) + 1, 2)) for part in parts]
        made.append([t for part, (low, high) in zip(parts, cuts, strict=True) for t in part[low:high]] or [1])
    return made


@pytest.mark.parametrize("size", [3, 40, PIECE])
@pytest.mark.parametrize("seed", range(6))
def test_search_finds_what_sets_find(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    header = random_document(99, 30)
    pool = [random_document(100 + n, 60) for n in range(12)]
    validation, training = pasted(rng, pool, 20 * (1 + seed % 2)), pasted(rng, pool, 40)
    validation[3], training[7], training[8] = training[2], training[2], [*header, *training[8]]
    validation = [[*header, *one] if n % 3 else one for n, one in enumerate(validation)]
    assert_as_expected(validation, training, size)


documents = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=30), min_size=1, max_size=12)


@settings(max_examples=40)
@given(documents, documents, st.integers(1, 25))
def test_search_finds_what_sets_find_in_any_documents(
    validation: list[Document], training: list[Document], size: int
) -> None:
    assert_as_expected(validation, training, size)


# Planted


def test_folder_with_every_document_twice_is_found_whole(tmp_path: Path) -> None:
    texts = unrelated(40)
    found = found_in(tmp_path, texts, [*unrelated(5, seed=7), *texts])
    assert kinds(found) == dict.fromkeys(range(1, 41), Kind.EXACT)
    assert {(match.validation, match.other) for match in found.across} == {(n, n + 5) for n in range(1, 41)}
    assert (found.record.exact_documents, found.record.exact_tokens, found.record.near_documents) == (40, 4_000, 0)
    assert found.record.share == pytest.approx(4_000 / 4_040) and found.record.shared_shingles == 1
    assert found.record.within_documents == 0 and remedy(found.record)


def test_document_with_a_tenth_of_its_words_rewritten_is_near(tmp_path: Path) -> None:
    original = random_document(1, 300)
    rewritten = [*original[:130], *random_document(2, 30), *original[160:]]
    found = found_in(tmp_path, [*unrelated(9), rewritten], [*unrelated(9, seed=50), original])
    assert kinds(found) == {10: Kind.NEAR}
    assert found.across[0].containment == (123 + 133) / 293 and found.across[0].other == 10


def test_document_with_scattered_words_changed_is_found(tmp_path: Path) -> None:
    """Every tenth token changed: three of ten shingles remain, so it is an overlap."""
    original = random_document(1, 300)
    changed = [token + 20_000 if n % 10 == 0 else token for n, token in enumerate(original)]
    found = found_in(tmp_path, [*unrelated(9), changed], [*unrelated(9, seed=50), original])
    assert kinds(found) == {10: Kind.OVERLAP} and 0.2 < found.across[0].containment < 0.3
    assert found.record.overlapping_documents == 1 and found.record.documents == 0


def test_half_of_the_shingles_is_the_limit_of_a_near_duplicate(tmp_path: Path) -> None:
    text = random_document(1, 107)  # 100 shingles
    below = found_in(tmp_path / "a", [*unrelated(5), text], [[*text[:56], 7]])
    assert below.across[0].containment == 0.49 and below.across[0].kind is Kind.OVERLAP
    limit = found_in(tmp_path / "b", [*unrelated(5), text], [[*text[:57], 7]])
    assert limit.across[0].containment == 0.5 and limit.across[0].kind is Kind.NEAR


def test_beginning_of_a_training_document_is_near(tmp_path: Path) -> None:
    """The rule by documents keeps the first tokens of each, so an equal one in training would be longer."""
    found = found_in(tmp_path, [random_document(1, 50)], [random_document(1, 50) + random_document(2, 900)])
    assert kinds(found) == {1: Kind.NEAR} and found.across[0].containment == 1


def test_unrelated_documents_have_nothing_in_common(tmp_path: Path) -> None:
    found = found_in(tmp_path, unrelated(20), unrelated(60, seed=5_000))
    assert not found.across and not found.within and remedy(found.record) is None
    assert (found.record.validation_documents, found.record.share_mostly_in_training) == (20, 0)


def test_header_of_all_documents_makes_no_duplicates(tmp_path: Path) -> None:
    header = random_document(0, 80)
    found = found_in(
        tmp_path, [[*header, *one] for one in unrelated(40)], [[*header, *one] for one in unrelated(200, seed=5_000)]
    )
    assert not found.across and not found.within and found.record.repeated_documents == 0
    assert found.record.shared_shingles == pytest.approx(73 / 173)


def test_documents_that_are_mostly_header_are_repeated_text(tmp_path: Path) -> None:
    header = random_document(0, 300)
    validation = [[*header, *one] for one in unrelated(40)]
    training = [[*header, *one] for one in unrelated(200, seed=5_000)]
    found = found_in(tmp_path / "both", validation, training)
    assert not found.across and found.record.repeated_documents == 40 and remedy(found.record)
    elsewhere = found_in(tmp_path / "one", validation, unrelated(200, seed=5_000))
    assert elsewhere.record.repeated_documents == 0  # training does not have the header


def test_boilerplate_in_many_documents_is_bounded(tmp_path: Path) -> None:
    """10,000 training documents of which each shares a licence with 2,000 validation documents: 20 million pairs."""
    licence = random_document(0, 24)
    validation = [[*licence, n, n + 1] for n in range(2_000)]
    manifest = dataset_of(tmp_path, validation, [[*licence, 30_000 + n] for n in range(10_000)])
    search = Search(tmp_path, manifest)
    index = search.build_index()
    tracemalloc.start()
    found = search.run(index)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not found.across and peak < 20_000_000


def test_giant_training_document_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "PIECE", 1_000)
    planted = [random_document(n, 200) for n in range(8)]
    giant = [token for n, one in enumerate(planted) for token in (*random_document(50 + n, 5_000), *one)]
    found = found_in(tmp_path, [*planted, *unrelated(4)], [[1, 2, 3], giant, [4, 5]])
    assert kinds(found) == dict.fromkeys(range(1, 9), Kind.NEAR)
    assert {match.other for match in found.across} == {2} and {match.other_start for match in found.across} == {5}


def test_giant_document_on_both_sides_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "PIECE", 1_000)
    giant = random_document(1, 20_000)
    found = found_in(tmp_path, [giant], [[1], [*giant[:-1], 3], giant])
    assert kinds(found) == {1: Kind.EXACT} and found.across[0].other == 3


@pytest.mark.parametrize("tokens", [1, SHINGLE - 1])
def test_documents_shorter_than_a_shingle_are_compared_whole(tmp_path: Path, tokens: int) -> None:
    short = [random_document(n, tokens) for n in range(10)]
    found = found_in(tmp_path, short, [*(random_document(90 + n, tokens) for n in range(5)), *short[:4]])
    assert kinds(found) == dict.fromkeys(range(1, 5), Kind.EXACT) and found.record.shared_shingles == 0


def test_one_document_on_each_side(tmp_path: Path) -> None:
    assert not found_in(tmp_path / "a", [random_document(1, 99)], [random_document(2, 99)]).across
    assert kinds(found_in(tmp_path / "b", [random_document(1, 99)], [random_document(1, 99)])) == {1: Kind.EXACT}


def test_repeats_within_validation_are_counted(tmp_path: Path) -> None:
    first, second = random_document(1, 200), random_document(2, 200)
    found = found_in(tmp_path, [first, *unrelated(20), first, second, [*second[:150], 5]], unrelated(3, seed=9))
    assert {(match.validation, match.other): match.kind for match in found.within} == {
        (1, 22): Kind.EXACT,
        (22, 1): Kind.EXACT,
        (23, 24): Kind.NEAR,
        (24, 23): Kind.NEAR,
    }
    assert (found.record.within_documents, found.record.within_tokens, found.across) == (4, 751, [])


@pytest.mark.parametrize("form", ["npy", "llm.c", "nanogpt"])
def test_imported_formats_give_the_same_findings(tmp_path: Path, form: str) -> None:
    texts = unrelated(12)
    found = found_in(tmp_path, texts[:4], [*unrelated(3, seed=9), *texts[2:]], form)
    assert {match.validation: match.other for match in found.across} == {3: 4, 4: 5}
    assert found.record.exact_documents == 2


def test_document_across_two_shards_is_whole(tmp_path: Path) -> None:
    text = random_document(1, 150)
    manifest = dataset_of(tmp_path, [text], [*unrelated(2), text], shard_tokens=100)
    search = Search(tmp_path, manifest)
    found = search.run(search.build_index())
    assert kinds(found) == {1: Kind.EXACT} and found.across[0].other == 3


def test_progress_ends_at_the_number_of_tokens_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "PIECE", 100)
    reported: list[tuple[int, int]] = []

    class Progress(duplicates.NoProgress):
        def update(self, done: int, total: int) -> None:
            reported.append((done, total))

    manifest = dataset_of(tmp_path, unrelated(3), unrelated(9))
    search = Search(tmp_path, manifest, Progress())
    index = search.build_index()
    assert search.estimated_seconds(index) > 0
    search.run(index)
    assert reported[-1] == (2 * manifest.tokens("val") + manifest.tokens("train"),) * 2
    assert [done for done, _ in reported] == sorted(done for done, _ in reported)


def test_too_little_memory_is_refused_with_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search(tmp_path, dataset_of(tmp_path, unrelated(3), unrelated(3)))
    monkeypatch.setattr(duplicates, "free_memory", lambda: 3e6)
    with pytest.raises(duplicates.DataError, match=r"303 validation tokens.*150 MB.*3 MB are free"):
        search.build_index()


# By the command

TABLE_ROW = re.compile(r"^  ([a-z -]+?) +([\d,]+) +([\d,]+) +([\d.]+) %$", re.MULTILINE)


def test_command_counts_lists_and_stores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [random_document(n, 100) for n in range(30)]
    manifest = dataset_of(tmp_path, texts[:12], [*unrelated(20), *texts[10:]])
    assert main(["data", "show", str(tmp_path), "--duplicates"]) == 0
    printed = capsys.readouterr().out
    counts = {
        name: (int(number), int(tokens.replace(",", ""))) for name, number, tokens, _ in TABLE_ROW.findall(printed)
    }
    assert counts["all"] == (12, manifest.tokens("val")) and counts["same tokens"] == (2, 200)
    assert re.findall(r"^ +(\d+) +100 % +(\d+) +([\d,]+)  \S", printed, re.MULTILINE) == [
        ("11", "21", "2,021"),
        ("12", "22", "2,122"),
    ]
    assert "warning: 16.5 % of the validation tokens" in printed
    assert max(map(len, printed.splitlines())) <= 80 or "reading" in max(printed.splitlines(), key=len)
    stored = stored_duplicates(tmp_path, manifest)
    assert stored is not None and (stored.exact_documents, stored.exact_tokens) == (2, 200)
    assert main(["data", "show", str(tmp_path), "--block-size", "16"]) == 0
    assert "16.5 %" in capsys.readouterr().out


def test_stored_counts_of_other_tokens_are_not_used(tmp_path: Path) -> None:
    manifest = dataset_of(tmp_path, unrelated(3), unrelated(3))
    assert main(["data", "show", str(tmp_path), "--duplicates"]) == 0
    path = tmp_path / DUPLICATES_FILE
    known = json.loads(path.read_text())
    assert stored_duplicates(tmp_path, manifest) == SplitDuplicates.from_json(known)
    for changed in ({**known, "digest": "0"}, {**known, "near_tokens": "3"}, {"digest": known["digest"]}):
        path.write_text(json.dumps(changed))
        assert stored_duplicates(tmp_path, manifest) is None


def test_damaged_shard_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset_of(tmp_path, unrelated(3), unrelated(3))
    path = tmp_path / "train_000000.npy"
    path.write_bytes(path.read_bytes()[:-2])
    assert main(["data", "show", str(tmp_path), "--duplicates"]) == DATA
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("rule", ["first_tokens", "documents"])
def test_prepared_text_with_planted_copies(tmp_path: Path, rule: str) -> None:
    """Every text twice: the rule by documents keeps copies on one side, the first tokens do not."""
    rng = np.random.default_rng(3)
    words = [f"{rng.integers(10**6)}" for _ in range(2_000)]
    texts = [f"{n} " + " ".join(rng.choice(words, 60)) for n in range(60)]
    (tmp_path / "texts").mkdir()
    lines = (json.dumps({"text": text}) for text in texts * 2)
    (tmp_path / "texts" / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    manifest = prepare(tiny_recipe(tmp_path, data={"validation": rule, "validation_tokens": 2_000}))
    search = Search(tmp_path / "data", manifest)
    found = search.run(search.build_index())
    if rule == "documents":
        assert not found.across
    else:
        last = found.record.validation_documents
        of_document = kinds(found)
        assert of_document.pop(last) is Kind.NEAR  # its end is in training
        assert of_document == dict.fromkeys(range(1, last), Kind.EXACT)
        assert found.record.share == pytest.approx(1, abs=0.02)
