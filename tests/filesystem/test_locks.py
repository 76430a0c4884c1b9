"""A run or a dataset has one writer, also where the file system has no locks."""

import errno
import multiprocessing
import os
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from regpt.base.errors import LockedError
from regpt.filesystem.locks import locked
from tests.helpers import strange_disks

WITHOUT_LOCKS = [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS]
posix = pytest.mark.skipif(os.name == "nt", reason="Windows has other locks")


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


@posix
@pytest.mark.parametrize("number", WITHOUT_LOCKS)
def test_lock_is_a_marker_file_where_there_is_no_flock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with locked(tmp_path / "lock") as held:
        assert held.note == ""
    strange_disks.without_locks(monkeypatch, number)
    with locked(tmp_path / "lock") as held:
        assert "lock.marker" in held.note
        with pytest.raises(LockedError, match=f"process {os.getpid()}"), locked(tmp_path / "lock"):
            pass
    with locked(tmp_path / "lock"):  # it was given back
        pass
    assert not list(tmp_path.glob("*.marker"))


@posix
def test_marker_of_a_killed_process_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strange_disks.without_locks(monkeypatch, errno.ENOLCK)
    if (process := os.fork()) == 0:
        lock = locked(tmp_path / "lock")
        lock.__enter__()
        os._exit(9)
    os.waitpid(process, 0)
    assert (tmp_path / "lock.marker").exists()
    with locked(tmp_path / "lock"):
        pass


@posix
def test_marker_of_another_machine_names_the_command_that_removes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strange_disks.without_locks(monkeypatch, errno.ENOLCK)
    folder = tmp_path / "my runs"
    folder.mkdir()
    lock = locked(folder / "lock")
    lock.__enter__()
    marker, holder = folder / "lock.marker", folder / "lock.holder"
    marker.write_text(marker.read_text().replace(os.uname().nodename, "node-17"))
    holder.write_text("process 4711 on node-17\n")
    with pytest.raises(LockedError, match="process 4711 on node-17") as caught, locked(folder / "lock"):
        pass
    command = caught.value.fix.rsplit("; if it is gone: ", 1)[1]
    assert os.system(command) == 0
    with locked(folder / "lock"):
        pass
