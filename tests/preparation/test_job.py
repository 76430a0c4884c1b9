"""A preparation gives the same bytes for any number of workers, and after any number of stops and kills."""

import gzip
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from regpt.base import files
from regpt.base.errors import DataError, LockedError, UserError
from regpt.corpus import chunks, parquet
from regpt.corpus.progress import NoPreparationProgress
from regpt.corpus.text_files import FilePart
from regpt.data import shard_writer, tokenizer
from regpt.data.shards import Manifest, read_manifest
from regpt.machine.limits import free_memory, usable_processors
from regpt.preparation import encoders, job, split
from regpt.preparation.dataset import exclusive, prepare
from regpt.recipe.recipe import Recipe
from regpt.recipe.settings import to_toml
from regpt.tokenization import gigatoken
from tests.conftest import tiny_recipe, wait_until


@pytest.fixture
def many(tmp_path: Path, real_text: str) -> Path:
    """Tables of both types, in enough files for several workers. Text files are not read next to tables."""
    folder = tmp_path / "texts"
    folder.mkdir()
    pieces = [real_text[first : first + 2_000] for first in range(0, len(real_text), 2_000)]
    for number, piece in enumerate(pieces[:15]):
        (folder / f"{number:02d}.jsonl").write_text(json.dumps({"text": piece}), encoding="utf-8")
    (folder / "lines.jsonl").write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces[15:30]))
    pq.write_table(pa.table({"text": pieces[30:]}), folder / "rows.parquet", row_group_size=3)
    return folder


def recipe_at(folder: Path, name: str, **data: object) -> Recipe:
    return tiny_recipe(folder, data={"path": str(folder / name), "source": str(folder / "texts"), **data})


def contents(folder: Path) -> dict[str, bytes]:
    """Read all files except the record of the preparation."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "preparation.json"}


@pytest.mark.parametrize("rule", ["documents", "first_tokens"])
def test_dataset_bytes_do_not_depend_on_workers(many: Path, tmp_path: Path, rule: str) -> None:
    for workers in (1, 2, 3):
        made = prepare(recipe_at(tmp_path, f"by-{workers}", workers=workers, validation=rule, validation_tokens=1_000))
        assert made.validation.rule == rule
    assert contents(tmp_path / "by-1") == contents(tmp_path / "by-2") == contents(tmp_path / "by-3")


def test_dataset_bytes_do_not_depend_on_chunk_size(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(recipe_at(tmp_path, "whole"))
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 5_000)
    prepare(recipe_at(tmp_path, "cut"))
    monkeypatch.setattr(parquet, "MAX_ROW_GROUP_BYTES", 100)  # every row group is too large to be read whole
    monkeypatch.setattr(parquet, "ROWS_PER_READ", 2)
    prepare(recipe_at(tmp_path, "by-rows"))
    assert contents(tmp_path / "whole") == contents(tmp_path / "cut") == contents(tmp_path / "by-rows")


def test_dataset_bytes_do_not_depend_on_file_creation_order(many: Path, tmp_path: Path) -> None:
    prepare(recipe_at(tmp_path, "one"))
    moved = tmp_path / "moved"
    many.rename(moved)
    many.mkdir()
    for path in sorted(moved.iterdir(), reverse=True):
        shutil.copy(path, many / path.name)
    prepare(recipe_at(tmp_path, "other"))
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_dataset_tokens_equal_the_public_preparation(tmp_path: Path) -> None:
    """An end token before each document; the first tokens are validation, even if that splits a document."""
    (tmp_path / "texts").mkdir()
    lines = [{"text": "Hello, I'm a language model,"}, {"text": "hello world"}] * 30
    (tmp_path / "texts" / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    prepare(recipe_at(tmp_path, "data", validation_tokens=40, shard_tokens=200))
    one, other = [50256, 15496, 11, 314, 1101, 257, 3303, 2746, 11], [50256, 31373, 995]  # OpenAI's ids
    expected = (one + other) * 30
    assert np.load(tmp_path / "data" / "val_000000.npy").tolist() == expected[:40]
    assert np.load(tmp_path / "data" / "train_000000.npy").tolist() == expected[40:240]
    assert np.load(tmp_path / "data" / "train_000001.npy").tolist() == expected[240:]


# Stopped and killed


@pytest.mark.slow
@pytest.mark.parametrize("n_kills", [3, pytest.param(20, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("rule", ["documents", pytest.param("first_tokens", marks=pytest.mark.nightly)])
def test_preparation_killed_at_random_moments_has_the_same_bytes(
    many: Path, tmp_path: Path, n_kills: int, rule: str
) -> None:
    settings: dict[str, object] = {"validation": rule, "validation_tokens": 1_000}
    assert prepare(recipe_at(tmp_path, "whole", **settings)).validation.rule == rule
    random.seed(20)
    kills, finished = 0, 0
    while kills < n_kills or not finished:
        calls = random.randint(1, 1500) if kills < n_kills else 10**9
        process = prepare_killed(tmp_path, calls, random.choice([1, 1, 1, 2]), **settings)
        if process.returncode == -signal.SIGKILL:
            kills += 1
            assert not (tmp_path / "data").exists() or contents(tmp_path / "data") == contents(tmp_path / "whole")
        elif process.returncode == 3 and "exists already" in process.stderr:
            pass  # killed after the folder was renamed
        else:
            assert process.returncode == 0, process.stderr
        if (tmp_path / "data").exists():
            finished += 1
            assert contents(tmp_path / "data") == contents(tmp_path / "whole")
            shutil.rmtree(tmp_path / "data")
            assert sorted(path.name for path in tmp_path.iterdir()) == ["texts", "whole"]


def test_workers_start_where_temporary_paths_are_long(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket of Python's fork server has a path of at most 107 bytes; folders of clusters are longer."""
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    made = prepare(recipe_at(tmp_path, "long", workers=2, validation_tokens=1_000))
    monkeypatch.undo()
    alone = prepare(recipe_at(tmp_path, "alone", workers=1, validation_tokens=1_000))
    assert made.digest == alone.digest


def prepare_killed(folder: Path, calls: int, workers: int, **data: object) -> "subprocess.CompletedProcess[str]":
    (folder / "tiny.toml").write_text(recipe_text(folder, workers, **data))
    words = [sys.executable, "-m", "tests.helpers.killed_preparation", str(calls), "prepare", str(folder / "tiny.toml")]
    process = subprocess.run(words, capture_output=True, text=True, check=False)
    (folder / "tiny.toml").unlink()
    return process


def recipe_text(folder: Path, workers: int, **data: object) -> str:
    return to_toml(recipe_at(folder, "data", workers=workers, **data))


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("n_errors", [5, pytest.param(20, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("rule", ["documents", "first_tokens"])
def test_preparation_with_exceptions_at_random_moments_has_the_same_bytes(
    many: Path, tmp_path: Path, error: type[BaseException], n_errors: int, rule: str
) -> None:
    """A second Ctrl-C, or a full disk: unlike a kill, the program's own code handles it."""
    settings: dict[str, object] = {"validation": rule, "validation_tokens": 1_000}
    prepare(recipe_at(tmp_path, "whole", **settings))
    random.seed(21)
    errors = 0
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(chunks, "CHUNK_BYTES", 10_000)
        while errors < n_errors:
            try:
                with raised_at_call(random.randint(1, 900), error):
                    prepare(recipe_at(tmp_path, "data", **settings))
            except (KeyboardInterrupt, OSError):
                errors += 1
            except UserError as named:
                assert "cannot" in named.problem
                errors += 1
            if (tmp_path / "data").exists():
                assert contents(tmp_path / "data") == contents(tmp_path / "whole")
                shutil.rmtree(tmp_path / "data")
        prepare(recipe_at(tmp_path, "data", **settings))
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "texts", "whole"]


@contextmanager
def raised_at_call(calls: int, error: type[BaseException]) -> Iterator[None]:
    """Raise `error` at call number `calls` of a function in the modules that write."""
    ours = {job.__file__, shard_writer.__file__, split.__file__, files.__file__}

    def count(frame: FrameType, event: str, arg: object) -> None:
        nonlocal calls
        if event == "call" and frame.f_code.co_filename in ours:
            calls -= 1
            if calls == 0:
                sys.setprofile(None)
                raise error

    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(None)


def test_sealed_preparation_is_only_renamed(many: Path, tmp_path: Path) -> None:
    prepare(recipe_at(tmp_path, "data"))
    written = contents(tmp_path / "data")
    (tmp_path / "data").rename(tmp_path / ".data.preparing")
    many.rename(tmp_path / "gone")  # the text is not needed any more
    prepare(recipe_at(tmp_path, "data"))
    assert contents(tmp_path / "data") == written


class StopAfter(NoPreparationProgress):
    """Raises KeyboardInterrupt at check number `checks`, as a signal would; remembers events."""

    def __init__(self, checks: int) -> None:
        self.checks = checks
        self.resumes: list[tuple[int, int]] = []
        self.notes: list[str] = []

    def raise_if_stopped(self) -> None:
        self.checks -= 1
        if self.checks == 0:
            raise KeyboardInterrupt

    def resumed(self, done: int, tokens: int) -> None:
        self.resumes.append((done, tokens))

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize("rule", ["documents", "first_tokens"])
def test_stopped_preparation_resumes_where_it_was(many: Path, tmp_path: Path, rule: str) -> None:
    settings: dict[str, object] = {"validation": rule, "validation_tokens": 1_000}
    whole = prepare(recipe_at(tmp_path, "whole", **settings))
    stops = 0
    while not (tmp_path / "data").exists():
        progress = StopAfter(4)
        try:
            assert prepare(recipe_at(tmp_path, "data", **settings), progress) == whole
        except KeyboardInterrupt:
            stops += 1
        if stops > 1:
            assert progress.resumes[0][1] > 0
    assert stops > 3
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")
    assert json.loads((tmp_path / "data" / "preparation.json").read_text())["attempts"] == stops + 1


def test_preparation_stopped_by_version_0_1_is_resumed(many: Path, tmp_path: Path) -> None:
    """Version 0.1 saved the number of the chunk as "section"."""
    with pytest.raises(KeyboardInterrupt):
        prepare(recipe_at(tmp_path, "data"), StopAfter(9))
    path = tmp_path / ".data.preparing" / "progress.json"
    state = json.loads(path.read_text())
    state["section"] = state.pop("chunk")
    path.write_text(json.dumps(state))
    progress = StopAfter(-1)
    prepare(recipe_at(tmp_path, "data"), progress)
    assert progress.notes == [] and progress.resumes == [(state["done"], state["counts"]["tokens"])]
    prepare(recipe_at(tmp_path, "whole"))
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")


@pytest.mark.parametrize("change", ["text", "setting", "progress", "shard"])
def test_changed_attempt_starts_again_with_a_note(many: Path, tmp_path: Path, change: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepare(recipe_at(tmp_path, "data"), StopAfter(9))
    partial = tmp_path / ".data.preparing"
    settings: dict[str, object] = {}
    if change == "text":
        (many / "00.jsonl").write_text(json.dumps({"text": "another beginning"}))
    elif change == "setting":
        settings = {"validation_tokens": 3_000}
    elif change == "progress":
        (partial / "progress.json").write_text("{")
    else:
        (partial / "val_000000.npy").write_bytes(b"")
    progress = StopAfter(-1)
    prepare(recipe_at(tmp_path, "data", **settings), progress)
    assert "starting again" in progress.notes[0]
    prepare(recipe_at(tmp_path, "whole", **settings))
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(tmp_path: Path, real_text: str) -> None:
    (tmp_path / "texts").mkdir()
    for number in range(40):
        (tmp_path / "texts" / f"{number:02d}.txt").write_text(real_text * 20, encoding="utf-8")
    (tmp_path / "tiny.toml").write_text(recipe_text(tmp_path, 2))
    words = [sys.executable, "-m", "regpt", "prepare", str(tmp_path / "tiny.toml")]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
        wait_until(lambda: (tmp_path / ".data.preparing" / "val_000000.npy").exists())
        below = psutil.Process(process.pid).children(recursive=True)
        assert len(below) >= 3  # the server that forks them, and two workers
        process.kill()
    wait_until(lambda: not any(child.is_running() and child.status() != "zombie" for child in below))


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize(("received", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_to_the_process_group_loses_no_work(
    tmp_path: Path, real_text: str, received: signal.Signals, code: int
) -> None:
    large = {"shard_tokens": 100_000}
    (tmp_path / "texts").mkdir()
    for number in range(40):
        (tmp_path / "texts" / f"{number:02d}.txt").write_text(real_text * 2, encoding="utf-8")
    (tmp_path / "tiny.toml").write_text(recipe_text(tmp_path, 2, **large))
    words = [sys.executable, "-m", "regpt", "prepare", str(tmp_path / "tiny.toml")]
    with subprocess.Popen(
        words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        wait_until(lambda: (tmp_path / ".data.preparing" / "train_000001.npy").exists())
        os.killpg(process.pid, received)
        _, errors = process.communicate(timeout=10)
    assert process.returncode == code, errors
    assert received.name in errors and "Traceback" not in errors
    again = subprocess.run(words, capture_output=True, text=True, check=True)
    assert int(re.search(r"after ([\d,]+) tokens", again.stdout)[1].replace(",", "")) > 0  # type: ignore[index]
    prepare(recipe_at(tmp_path, "whole", **large))
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")


def test_dataset_is_prepared_by_one_process_at_a_time(tiny: Recipe) -> None:
    with exclusive(tiny, NoPreparationProgress()), pytest.raises(LockedError, match=str(tiny.data.directory)):
        prepare(tiny)
    assert [path.name for path in tiny.data.directory.parent.iterdir()] == ["texts"]


# Hostile text

HOSTILE: list[object] = [
    "an ordinary beginning",
    " " * 1_000_000 + "x",
    "half a pair \ud800 of surrogates",
    "\x00",
    "",
    " \n\t ",
    "before <|endoftext|> after",
    "ten megabytes in a line " * 420_000,
    None,
    17,
    "an ordinary end",
]
REFUSED = {"empty": 2, "no text in the column": 2, "tiktoken cannot encode it": 1}


@pytest.mark.parametrize("backend", ["tiktoken", "gigatoken"])
def test_hostile_documents_are_encoded_or_refused_and_counted(tmp_path: Path, backend: str) -> None:
    (tmp_path / "texts").mkdir()
    lines = [*({"text": document} for document in HOSTILE), {"body": "no field of that name"}]
    (tmp_path / "texts" / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest = prepare(recipe_at(tmp_path, "data", tokenizer_backend=backend))
    assert manifest.statistics["refused"] == {**REFUSED, "no text in the column": 3}
    assert manifest.statistics["documents"] == 6
    tokens = np.concatenate([np.load(tmp_path / "data" / shard.name) for shard in manifest.shards])
    assert np.count_nonzero(tokens == tokenizer.END_OF_TEXT) == 6
    texts = [document for document in HOSTILE if isinstance(document, str) and len(document) != 1_000_001]
    expected = [[tokenizer.END_OF_TEXT, *tokenizer.encode(text)] for text in texts if text.strip(" \n\t")]
    assert tokens.tolist() == [number for document in expected for number in document]


def test_invalid_utf8_costs_one_document(tmp_path: Path, real_text: str) -> None:
    (tmp_path / "texts").mkdir()
    values = [real_text.encode(), b"caf\xe9", real_text.encode()]
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
    column = pa.StringArray.from_buffers(3, pa.py_buffer(offsets), pa.py_buffer(b"".join(values)))
    pq.write_table(pa.table({"text": column}), tmp_path / "texts" / "a.parquet")
    manifest = prepare(recipe_at(tmp_path, "data"))
    assert manifest.statistics["refused"] == {"not UTF-8": 1} and manifest.statistics["documents"] == 2


def test_line_ends_are_kept(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_bytes(b"\xef\xbb\xbf" + b"one\r\ntwo\rthree\n" * 100)
    manifest = prepare(recipe_at(tmp_path, "data", validation_tokens=100, shard_tokens=1000))
    assert tokenizer.decode(all_tokens(tmp_path / "data", manifest)[1:]) == "one\r\ntwo\rthree\n" * 100


def test_parquet_column_with_a_dot_in_its_name_is_chunked(tmp_path: Path, real_text: str) -> None:
    (tmp_path / "texts").mkdir()
    path = tmp_path / "texts" / "a.parquet"
    pq.write_table(pa.table({"my.text": [real_text] * 100}), path, row_group_size=1, use_dictionary=False)
    parts = list(FilePart(path, "my.text").chunks())
    assert len(parts) > 1 and sum(len(part.groups) for part in parts) == 100  # type: ignore[attr-defined]


def test_files_with_documents_left_out_are_named(tmp_path: Path, real_text: str) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text(real_text, encoding="utf-8")
    for number in range(5):
        (tmp_path / "texts" / f"latin-{number}.txt").write_bytes("müde".encode("latin-1"))
    (tmp_path / "texts" / "wide.txt").write_bytes("words".encode("utf-16-le"))
    manifest = prepare(recipe_at(tmp_path, "data"))
    assert manifest.statistics["refused"] == {"UTF-16LE without a byte order mark": 1, "not UTF-8": 5}
    named = {reason: [Path(name).name for name in names] for reason, names in manifest.statistics["refused_in"].items()}
    assert named["not UTF-8"] == ["latin-0.txt", "latin-1.txt", "latin-2.txt"]
    assert named["UTF-16LE without a byte order mark"] == ["wide.txt"]


def test_end_marks_in_the_text_are_counted_and_noted_once(tmp_path: Path, real_text: str) -> None:
    (tmp_path / "texts").mkdir()
    text = real_text.replace("\n\n", "\n<|endoftext|>\n")
    for name in ("a.txt", "b.txt"):
        (tmp_path / "texts" / name).write_text(text, encoding="utf-8")
    progress = StopAfter(-1)
    kept = prepare(recipe_at(tmp_path, "kept"), progress)
    (note,) = progress.notes
    assert "a.txt" in note and "data.document_separator='<|endoftext|>'" in note
    assert kept.statistics["end_marks"] == 2 * text.count("<|endoftext|>") and kept.statistics["documents"] == 2
    progress = StopAfter(-1)
    cut = prepare(recipe_at(tmp_path, "cut", document_separator="<|endoftext|>"), progress)
    assert cut.statistics["documents"] == 2 * sum(bool(piece.strip()) for piece in text.split("<|endoftext|>"))
    assert "end_marks" not in cut.statistics and progress.notes == []


@pytest.mark.parametrize("separator", ["", "\n\n"])
def test_long_texts_have_the_same_bytes_after_stops_and_for_any_workers(
    tmp_path: Path, real_text: str, monkeypatch: pytest.MonkeyPatch, separator: str
) -> None:
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.txt", "c.txt.gz"):
        content = (real_text[:20_000] if name == "b.txt" else real_text).encode()
        (tmp_path / "texts" / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    whole = prepare(recipe_at(tmp_path, "whole", document_separator=separator))
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 7_000)
    while not (tmp_path / "data").exists():
        with suppress(KeyboardInterrupt):
            prepare(recipe_at(tmp_path, "data", document_separator=separator), StopAfter(6))
    prepare(recipe_at(tmp_path, "by-2", document_separator=separator, workers=2))
    assert read_manifest(tmp_path / "data").statistics == whole.statistics
    assert contents(tmp_path / "data") == contents(tmp_path / "by-2") == contents(tmp_path / "whole")


@pytest.mark.parametrize("left", [b"", b"null", b"[1]", b"{"])
def test_damaged_state_of_an_attempt_starts_again(many: Path, tmp_path: Path, left: bytes) -> None:
    (tmp_path / ".data.preparing").mkdir()
    (tmp_path / ".data.preparing" / "progress.json").write_bytes(left)
    (tmp_path / ".data.preparing" / "preparation.json").write_bytes(left)
    prepare(recipe_at(tmp_path, "data"))
    prepare(recipe_at(tmp_path, "whole"))
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_broken_link_is_refused(many: Path, tmp_path: Path) -> None:
    (many / "z.txt").symlink_to(tmp_path / "nowhere.txt")
    with pytest.raises(DataError, match=r"z\.txt: broken link"):
        prepare(recipe_at(tmp_path, "data"))


def test_parquet_nulls_are_left_out(tmp_path: Path, real_text: str) -> None:
    (tmp_path / "texts").mkdir()
    pq.write_table(pa.table({"text": [real_text, None, real_text]}), tmp_path / "texts" / "a.parquet")
    assert prepare(recipe_at(tmp_path, "data")).statistics["refused"] == {"no text in the column": 1}


def test_parquet_column_without_text_is_refused(tmp_path: Path, real_text: str) -> None:
    (tmp_path / "texts").mkdir()
    pq.write_table(pa.table({"text": [1, 2], "body": [real_text] * 2}), tmp_path / "texts" / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: none of its 2 rows has text in the column 'text'"):
        prepare(recipe_at(tmp_path, "data"))
    assert prepare(recipe_at(tmp_path, "data", text_column="body")).statistics["documents"] == 2


def test_damaged_file_is_named_before_any_work(many: Path, tmp_path: Path) -> None:
    (many / "zzz.parquet").write_bytes(b"<html>Not found</html>")
    with pytest.raises(DataError, match=r"zzz\.parquet: damaged or not a parquet file"):
        prepare(recipe_at(tmp_path, "data", workers=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts"]


def test_work_before_a_wrong_file_is_kept(many: Path, tmp_path: Path) -> None:
    (many / "zzz.jsonl").write_text('{"body": "no field of that name"}\n')
    with pytest.raises(DataError, match=r"zzz\.jsonl: none of its 1 lines is JSON with a field 'text'"):
        prepare(recipe_at(tmp_path, "data", workers=2))
    assert (tmp_path / ".data.preparing" / "progress.json").exists() and not (tmp_path / "data").exists()


# gigatoken


def test_gigatoken_gives_the_same_dataset(many: Path, tmp_path: Path) -> None:
    by_tiktoken = prepare(recipe_at(tmp_path, "one"))
    by_gigatoken = prepare(recipe_at(tmp_path, "other", tokenizer_backend="gigatoken", workers=2))
    assert by_gigatoken.digest == by_tiktoken.digest
    assert by_gigatoken.made_with == {"tokenizer_backend": "gigatoken", "version": gigatoken.version()}
    assert by_tiktoken.made_with["tokenizer_backend"] == "tiktoken"


def test_gigatoken_difference_is_refused(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = gigatoken.Gigatoken.encode

    def wrong(self, texts):  # type: ignore[no-untyped-def]
        for text, ids in zip(texts, encode(self, texts), strict=True):
            yield ids[:-1] if text.startswith(documents[40]) else ids

    documents = pq.read_table(many / "rows.parquet").column("text").to_pylist()
    documents = ["?"] * 40 + [documents[1]]  # in the middle of the first 32 of that file
    monkeypatch.setattr(gigatoken.Gigatoken, "encode", wrong)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 10**6)
    with pytest.raises(DataError, match=r"rows\.parquet: gigatoken .* and tiktoken encode document 2 differently"):
        prepare(recipe_at(tmp_path, "data", tokenizer_backend="gigatoken"))


def test_gigatoken_is_reloaded_to_bound_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    monkeypatch.setattr(gigatoken, "RELOAD_AFTER_CHARACTERS", 10)
    monkeypatch.setattr(gigatoken, "load", lambda reference, real=gigatoken.load: loads.append(1) or real(reference))
    ours = gigatoken.Gigatoken()
    for _ in range(3):
        assert [ids.tolist() for ids in ours.encode(["hello world"])] == [[31373, 995]]
    assert len(loads) == 3


# Space


def test_full_disk_is_refused_before_any_work(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 20_000))
    with pytest.raises(DataError, match=r"20 kB free, about \d\d+(\.\d)? kB needed"):
        prepare(recipe_at(tmp_path, "data"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts"]


def test_statistics_are_those_of_the_documents(many: Path, tmp_path: Path) -> None:
    manifest: Manifest = prepare(recipe_at(tmp_path, "data", workers=2))
    lengths = Counter(np.diff(np.flatnonzero(all_tokens(tmp_path / "data", manifest) == tokenizer.END_OF_TEXT)))
    known = manifest.statistics
    assert known["longest_document_tokens"] >= max(lengths)
    assert known["tokens"] == sum(shard.tokens for shard in manifest.shards)
    assert known["bytes_per_token"] == pytest.approx(known["text_bytes"] / known["tokens"], abs=1e-4)


def all_tokens(folder: Path, manifest: Manifest) -> np.ndarray:
    return np.concatenate([np.load(folder / shard.name) for shard in manifest.shards])


def test_worker_count_follows_the_amount_of_text() -> None:
    assert encoders.worker_count(0, 1_000_000) == 1
    assert encoders.worker_count(0, 10**12) == min(usable_processors(), free_memory() // encoders.MEMORY_PER_WORKER)
    assert encoders.worker_count(3, 1_000) == 3


@pytest.mark.parametrize(
    ("processors", "memory", "workers"), [(64, 64e9, 64), (2, 64e9, 2), (64, 1e9, 4), (64, 1e6, 1)]
)
def test_worker_count_follows_the_limits_of_a_container(
    monkeypatch: pytest.MonkeyPatch, processors: int, memory: float, workers: int
) -> None:
    monkeypatch.setattr(encoders, "usable_processors", lambda: processors)
    monkeypatch.setattr(encoders, "free_memory", lambda: memory)
    assert encoders.worker_count(0, 10**12) == workers
    assert encoders.worker_count(8, 10**12) == 8  # as asked
