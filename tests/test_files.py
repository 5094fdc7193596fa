"""Files that survive a crash: what a full disk, a special file or another process makes of them."""

import errno
import os
import time

import pytest

from cambrian.sharding.host.files import (
    new_directory,
    open_regular,
    remove_abandoned,
    replace_file,
    sync_directory,
    write_file,
)


@pytest.fixture
def full_disk(monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)


def test_a_full_disk_is_named_by_the_path_and_leaves_the_old_content(tmp_path, full_disk):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match=f"No space left on device: '{path}'$"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / 'other'}'$"):
        write_file(tmp_path / "other", b"new")


def test_a_folder_that_the_disk_can_not_hold_is_named(tmp_path, full_disk):
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}'$"):
        sync_directory(tmp_path)


def test_a_new_directory_is_whole_or_absent(tmp_path):
    with pytest.raises(ZeroDivisionError), new_directory(tmp_path / "a") as directory:
        (directory / "file").touch()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with new_directory(tmp_path / "a") as directory:
        (directory / "file").touch()
        assert not (tmp_path / "a").exists()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]
    with pytest.raises(FileExistsError, match=str(tmp_path / "a")), new_directory(tmp_path / "a"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_only_old_directories_that_nobody_writes_to_are_abandoned(tmp_path):
    name = f".a.{'0' * 32}"
    long_ago = time.time() - 3600
    for folder in (name, ".a.b", "a"):
        (tmp_path / folder).mkdir()
        os.utime(tmp_path / folder, (long_ago, long_ago))
    with new_directory(tmp_path / "c") as directory:
        os.utime(directory, (long_ago, long_ago))
        remove_abandoned(tmp_path)
        assert directory.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.b", "a", "c"]


def test_a_fifo_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="Not a regular file"):
        open_regular(tmp_path / "fifo")
