"""What an interrupted call leaves is continued, and never taken for more than it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from worker.embedding.working import WorkingFolder, opened
from worker.errors import EmbeddingError

DIM = 3
KEYS = ["a", "b", "c"]
ROWS = np.arange(18, dtype=np.float32).reshape(6, DIM)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Two batches of two rows are done, as a killed process leaves them."""
    path = tmp_path / "out.npz"
    with opened(path, DIM) as folder:
        assert folder.resume(KEYS, skip_broken=False) == 0
        for number in range(2):
            folder.append(KEYS[number], [0, 1], [], ROWS[2 * number :][:2])
    return path


def resumed(out: Path, keys: list[str], *, skip_broken: bool = False) -> int:
    with opened(out, DIM) as folder:
        count = folder.resume(keys, skip_broken=skip_broken)
        assert (folder.rows() == ROWS[: 2 * count]).all()
        return count


def part(out: Path, name: str) -> Path:
    return out.parent / f".{out.name}.embedding" / name


def test_it_goes_on_after_the_last_batch(out: Path) -> None:
    with opened(out, DIM) as folder:
        assert folder.resume(KEYS, skip_broken=False) == 2
        folder.append("c", [1], [(0, "broken")], ROWS[4:5])
        assert (folder.rows() == ROWS[:5]).all()
        folder.finish({"x": folder.rows()})
    assert [path.name for path in out.parent.iterdir()] == ["out.npz"]
    assert out.stat().st_mode & 0o777 == 0o600
    assert (np.load(out)["x"] == ROWS[:5]).all()


def test_a_changed_image_is_embedded_again(out: Path) -> None:
    assert resumed(out, ["a", "other", "c"]) == 1
    assert resumed(out, KEYS) == 1  # what followed the change is gone


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_a_line_that_was_cut_does_not_count(out: Path, cut: int) -> None:
    log = part(out, "done.jsonl")
    log.write_bytes(log.read_bytes()[:-cut])
    # Without its line end a line is still whole.
    assert resumed(out, KEYS) == (2 if cut == 1 else 1)


def test_rows_without_a_line_are_thrown_away(out: Path) -> None:
    with part(out, "x.f32").open("ab") as file:
        file.write(b"half a row")
    assert resumed(out, KEYS) == 2
    assert part(out, "x.f32").stat().st_size == 4 * DIM * 4


@pytest.mark.parametrize("damage", ["flipped", "cut", "absent"])
def test_rows_that_are_not_what_was_written(out: Path, damage: str) -> None:
    rows = part(out, "x.f32")
    body = bytearray(rows.read_bytes())
    if damage == "flipped":
        body[30] ^= 1
        rows.write_bytes(body)
    elif damage == "cut":
        rows.write_bytes(body[:-1])
    else:
        rows.unlink()
    assert resumed(out, KEYS) == {"flipped": 1, "cut": 1, "absent": 0}[damage]


def test_batches_with_broken_images_count_only_where_they_may_be_skipped(out: Path) -> None:
    with opened(out, DIM) as folder:
        folder.resume(KEYS, skip_broken=True)
        folder.append("c", [0, 1], [(2, "broken")], ROWS[4:])
    assert resumed(out, KEYS, skip_broken=True) == 3
    assert resumed(out, KEYS) == 2


def test_one_process_at_a_time(out: Path) -> None:
    with (
        opened(out, DIM),
        pytest.raises(EmbeddingError, match="another process") as caught,
        opened(out, DIM),
    ):
        pass
    assert caught.value.field == "out"
    assert resumed(out, KEYS) == 2


def test_only_the_owner_can_read_what_gathers(out: Path) -> None:
    assert part(out, ".").stat().st_mode & 0o777 == 0o700
    for name in ("x.f32", "done.jsonl"):
        assert part(out, name).stat().st_mode & 0o777 == 0o600


def test_a_link_in_the_folders_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".out.npz.embedding").symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(EmbeddingError, match="cannot write"),
        opened(tmp_path / "out.npz", DIM),
    ):
        pass
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_full_disk_is_an_error_that_says_so(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with opened(out, DIM) as folder:
        folder.resume(KEYS, skip_broken=False)
        monkeypatch.setattr("worker.embedding.working.os.write", full)
        with pytest.raises(EmbeddingError, match="No space left"):
            folder.append("c", [0, 1], [], ROWS[4:])
    monkeypatch.undo()
    assert resumed(out, KEYS) == 2


def test_a_working_folder_is_made_by_opened_only(out: Path) -> None:
    with opened(out, DIM) as folder:
        assert isinstance(folder, WorkingFolder)
        assert not out.exists()
