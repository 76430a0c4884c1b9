"""Files are complete or absent."""

import multiprocessing
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from regpt.base.errors import LockedError
from regpt.base.files import append_line, end_last_line, locked, new_directory, write_text


def test_directory_gets_its_name_only_when_complete(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_directory(tmp_path / "deep" / "new") as directory:
        (directory / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with new_directory(tmp_path / "deep" / "new") as directory:
        (directory / "file").write_text("x")
        assert not (tmp_path / "deep" / "new").exists()
    assert (tmp_path / "deep" / "new" / "file").read_text() == "x"


def test_directory_does_not_contain_files_of_a_killed_process(tmp_path: Path) -> None:
    (tmp_path / ".new.partial").mkdir()
    (tmp_path / ".new.partial" / "old").write_text("x")
    with new_directory(tmp_path / "new"):
        pass
    assert list((tmp_path / "new").iterdir()) == []


def test_text_file_is_replaced_atomically_without_leftovers(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def hold(path: Path, held: Event, release: Event) -> None:
    with locked(path):
        held.set()
        release.wait(60)


def test_lock_refuses_a_second_writer_and_names_the_holder(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    held, release = spawn.Event(), spawn.Event()
    process = spawn.Process(target=hold, args=(tmp_path / "lock", held, release))
    process.start()
    assert held.wait(60)
    with pytest.raises(LockedError, match=f"process {process.pid}"), locked(tmp_path / "lock"):
        pass
    process.kill()
    process.join()
    with locked(tmp_path / "lock"):  # a lock left by kill -9 does not block
        pass


def test_line_after_an_incomplete_one_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b'{"a": 1}\n{"b"')
    end_last_line(path)
    append_line(path, '{"c": 3}')
    assert path.read_text().splitlines() == ['{"a": 1}', '{"b"', '{"c": 3}']
