"""What a file system cannot do is found before it is needed."""

import os
from pathlib import Path

import pytest

from regpt.base.errors import UserError
from regpt.filesystem.operations import FileOperation, check_file_system, missing_operations
from tests.helpers import strange_disks

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has other locks")


def test_local_disk_has_every_operation(tmp_path: Path) -> None:
    assert missing_operations(tmp_path / "probe") == {}
    check_file_system(tmp_path / "not" / "there", "data.path")
    assert list(tmp_path.iterdir()) == []


@posix
def test_bucket_without_folder_renames_is_refused_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strange_disks.without_folder_rename(monkeypatch)
    assert list(missing_operations(tmp_path / "probe")) == [FileOperation.RENAME_FOLDER]
    with pytest.raises(UserError, match=r"cannot rename a folder \(Function not implemented\)") as caught:
        check_file_system(tmp_path / "runs" / "a", "--runs FOLDER")
    assert "--runs FOLDER" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_folder_that_a_killed_probe_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".a.probe" / "renamed").mkdir(parents=True)
    check_file_system(tmp_path / "a", "data.path")
    assert list(tmp_path.iterdir()) == []
