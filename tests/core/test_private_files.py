"""Secrets on a disk: private from the first byte, whole, and never in the place of another."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from core.backups import new_backup
from core.errors import NoPlaceForBackup
from core.files import keep_private, put_private


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_private_file_is_whole_and_for_its_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "token"
    before = os.umask(0)
    try:
        keep_private(path, b"one", replace=False)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        keep_private(path, b"two", replace=False)
    with pytest.raises(FileExistsError):
        put_private(path, b"two")
    assert path.read_bytes() == b"one"
    # A process with this number was killed while it wrote, and left what others may read.
    left = tmp_path / f".token.{os.getpid()}"
    left.write_bytes(b"half of it, and longer than the next")
    left.chmod(0o644)
    keep_private(path, b"two", replace=True)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"two", 0o600)
    assert names(tmp_path) == ["token"]


def test_a_disk_that_takes_no_more_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "token"
    keep_private(path, b"one", replace=False)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("core.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        keep_private(path, b"two", replace=True)
    assert path.read_bytes() == b"one"
    assert names(tmp_path) == ["token"]


def test_a_backup_is_complete_or_not_there_and_replaces_nothing(tmp_path: Path) -> None:
    place = tmp_path / "backup"
    with pytest.raises(KeyboardInterrupt), new_backup(place) as part:
        (part / "dump").write_bytes(b"half")
        raise KeyboardInterrupt
    assert names(tmp_path) == []
    with new_backup(place) as part:
        (part / "dump").write_bytes(b"whole")
        assert not place.exists()
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert names(tmp_path) == ["backup"]
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    for taken in (place, tmp_path / "lost", tmp_path / "no" / "place"):
        with pytest.raises(NoPlaceForBackup) as found, new_backup(taken):
            pytest.fail("there is no place to write to")
        assert found.value.mend
        assert found.value.field == "DEST"
    assert (place / "dump").read_bytes() == b"whole"
