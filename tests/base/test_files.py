"""Files are complete or absent."""

import errno
import os
from pathlib import Path

import pytest

from regpt.base.files import append_line, end_last_line, flush_directory, new_directory, write_text
from tests.helpers import strange_disks

posix = pytest.mark.skipif(os.name == "nt", reason="Windows does not flush folders")


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


def test_line_after_an_incomplete_one_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b'{"a": 1}\n{"b"')
    end_last_line(path)
    append_line(path, '{"c": 3}')
    assert path.read_text().splitlines() == ['{"a": 1}', '{"b"', '{"c": 3}']


@posix
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_folders_that_cannot_be_flushed_are_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    strange_disks.without_folder_flush(monkeypatch, number)
    write_text(tmp_path / "file", "x")
    with new_directory(tmp_path / "new") as folder:
        (folder / "a").write_text("x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "new"]


@posix
def test_disk_that_fails_to_flush_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strange_disks.without_folder_flush(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        flush_directory(tmp_path)


def test_error_of_a_write_names_the_file_itself(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError) as caught:
        write_text(tmp_path / "file", "x")
    assert caught.value.filename == str(tmp_path / "file") and caught.value.filename2 is None
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
