"""Which images there are: a folder for each class, or a MedMNIST file."""

from __future__ import annotations

import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.worker.embedding.support import digits, write_folder, write_medmnist
from worker.embedding import units
from worker.embedding.pictures import FULL_WHITE
from worker.embedding.sources import Record, Source, open_source
from worker.errors import EmbeddingError


def opened(path: Path, split: str | None = None, classes: tuple[str, ...] | None = None) -> Source:
    return open_source(path, split=split, classes=classes, white=FULL_WHITE)


def refused(path: Path, says: str, field: str, **how: Any) -> None:
    with pytest.raises(EmbeddingError, match=says) as caught:
        opened(path, **how)
    assert caught.value.field == field
    assert caught.value.mend


# --- folders ---


def test_a_folder_in_the_order_of_its_paths(tmp_path: Path) -> None:
    names = write_folder(tmp_path / "images", 6, 3)
    source = opened(tmp_path / "images")
    assert [record.name for record in source.records] == names
    assert [record.label for record in source.records] == [n.split("/")[0] for n in names]
    assert source.classes == ("class-0", "class-1", "class-2")
    assert source.notes == ()
    first, *rest = (np.asarray(picture()) for picture in source.pictures(2))
    assert (first[:, :, 0] == digits()[0][1]).all()
    assert len(rest) == 3


def test_images_lie_at_any_depth_below_a_class(tmp_path: Path) -> None:
    write_folder(tmp_path / "images", 4, 2)
    write_folder(tmp_path / "images" / "class-0", 2, 2)
    source = opened(tmp_path / "images")
    deep = [record for record in source.records if record.name.startswith("class-0/class-1/")]
    assert [record.label for record in deep] == ["class-0"]


def test_links_are_not_followed_and_what_is_left_out_is_counted(tmp_path: Path) -> None:
    names = write_folder(tmp_path / "images", 4, 2)
    outside = write_folder(tmp_path / "outside", 2, 1)
    inside = tmp_path / "images" / "class-0"
    (inside / "link.png").symlink_to(tmp_path / "outside" / outside[0])
    (inside / "up").symlink_to(tmp_path / "outside")
    (tmp_path / "images" / "class-9").symlink_to(tmp_path / "outside")
    (inside / "scan.dcm").write_bytes(b"")
    (inside / ".DS_Store").write_bytes(b"")
    source = opened(tmp_path / "images")
    assert [record.name for record in source.records] == names
    assert source.classes == ("class-0", "class-1")
    assert source.notes == (
        "1 files (.dcm) left out", "1 hidden files left out", "2 symbolic links left out",
    )  # fmt: skip


def test_classes_that_a_site_does_not_have(tmp_path: Path) -> None:
    write_folder(tmp_path / "images", 4, 2)
    classes = ("class-3", "class-1", "class-0")
    assert opened(tmp_path / "images", classes=classes).classes == classes
    refused(tmp_path / "images", "no class: class-1", "classes", classes=("class-0", "class-3"))


def test_a_folder_with_splits(tmp_path: Path) -> None:
    write_folder(tmp_path / "images" / "train", 4, 2)
    write_folder(tmp_path / "images" / "test", 2, 2)
    refused(tmp_path / "images", "parts of a data set: test, train", "split")
    assert len(opened(tmp_path / "images", split="test").records) == 2
    refused(tmp_path / "images", "no folder and|cannot read", "SOURCE", split="val")


def test_folders_that_hold_nothing_of_use(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "no folder and no .npz", "SOURCE")
    refused(tmp_path, "no sub-folders", "SOURCE")
    (tmp_path / "class-0").mkdir()
    refused(tmp_path, "no image below", "SOURCE")
    (tmp_path / "loose.jpg").touch()
    refused(tmp_path, "loose.jpg", "SOURCE")


# --- MedMNIST ---


def test_a_medmnist_file(tmp_path: Path) -> None:
    write_medmnist(tmp_path / "a.npz")
    images, labels = digits()
    source = opened(tmp_path / "a.npz")
    assert [record.name for record in source.records[:2]] == ["train/0", "train/1"]
    assert [record.label for record in source.records] == [str(label) for label in labels[:30]]
    assert source.classes == tuple("0123456789")
    for start in (0, 29):
        seen = [np.asarray(picture())[:, :, 0] for picture in source.pictures(start)]
        assert (np.array(seen) == images[start:30]).all()


def test_the_splits_of_a_medmnist_file(tmp_path: Path) -> None:
    write_medmnist(tmp_path / "a.npz")
    source = opened(tmp_path / "a.npz", split="all", classes=tuple("abcdefghij"))
    assert [record.name for record in source.records[28:32]] == [
        "train/28", "train/29", "val/0", "val/1",
    ]  # fmt: skip
    assert source.records[-1].label == "j"
    images, _ = digits()
    for start in (0, 33, 49):  # across parts
        seen = [np.asarray(picture())[:, :, 0] for picture in source.pictures(start)]
        assert (np.array(seen) == images[start:]).all()
    refused(tmp_path / "a.npz", "no split 'dev'", "split", split="dev")


def test_coloured_and_deep_images_of_a_medmnist_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    coloured = rng.integers(0, 256, (30, 4, 4, 3), dtype=np.uint8)
    write_medmnist(tmp_path / "a.npz", train_images=coloured)
    first = next(iter(opened(tmp_path / "a.npz").pictures(3)))()
    assert (np.asarray(first) == coloured[3]).all()
    write_medmnist(tmp_path / "b.npz", train_images=np.full((30, 4, 4), 65_535, np.uint16))
    assert (np.asarray(next(iter(opened(tmp_path / "b.npz").pictures(0)))()) == 255).all()


@pytest.mark.parametrize(
    ("changes", "says", "field"),
    [
        ({"train_labels": np.zeros((30, 14), np.uint8)}, "several labels", "SOURCE"),
        ({"train_labels": np.zeros(30)}, "no class numbers", "SOURCE"),
        ({"train_labels": np.full(30, -1)}, "no class numbers", "SOURCE"),
        ({"train_labels": np.zeros(29, np.uint8)}, "30 train images have 29 labels", "SOURCE"),
        ({"train_labels": np.array([{}] * 30)}, "[Oo]bject|pickle", "SOURCE"),
        ({"train_labels": None}, "no train_images with train_labels", "SOURCE"),
        ({"train_images": np.zeros((30, 4, 4, 4), np.uint8)}, r"\[30, 4, 4, 4\]", "SOURCE"),
        ({"train_images": np.zeros((30, 4, 4), np.float32)}, "float32", "SOURCE"),
        ({"train_images": np.zeros((30, 4, 4), np.uint8).T.copy().T}, "column", "SOURCE"),
        ({"train_images": np.zeros((30, 0, 4), np.uint8)}, r"\[30, 0, 4\]", "SOURCE"),
        (
            {"train_images": np.zeros((0, 4, 4), np.uint8), "train_labels": np.zeros(0, np.uint8)},
            "train is empty",
            "SOURCE",
        ),
        ({"val_labels": np.full(6, 12)}, "label 12", "classes"),
    ],
)
def test_medmnist_files_that_cannot_be_used(
    tmp_path: Path, changes: dict[str, Any], says: str, field: str
) -> None:
    write_medmnist(tmp_path / "a.npz", **changes)
    refused(tmp_path / "a.npz", says, field, classes=tuple("0123456789"))


def test_a_header_that_promises_more_than_the_file_has(tmp_path: Path) -> None:
    """Declared 300 GB: nothing is read before the sizes fit together."""
    write_medmnist(tmp_path / "a.npz")
    head = "{'descr': '|u1', 'fortran_order': False, 'shape': (30, 99999, 99999), }"
    body = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode()
    small = "{'descr': '|u1', 'fortran_order': False, 'shape': (30, 1000, 1000), }"
    short = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(small)) + small.encode() + bytes(99)
    for name, content, says in (("b.npz", body, "pixels"), ("c.npz", short, "as long as")):
        with (
            zipfile.ZipFile(tmp_path / "a.npz") as good,
            zipfile.ZipFile(tmp_path / name, "w") as bad,
        ):
            for member in good.namelist():
                changed = member == "train_images.npy"
                bad.writestr(member, content if changed else good.read(member))
        refused(tmp_path / name, says, "SOURCE")


def test_damaged_archives(tmp_path: Path) -> None:
    write_medmnist(tmp_path / "a.npz")
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "cut.npz", "zip", "SOURCE")
    flipped = bytearray(whole)
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        info = archive.getinfo("train_images.npy")
    flipped[info.header_offset + 1000] ^= 0xFF
    (tmp_path / "flipped.npz").write_bytes(flipped)
    with pytest.raises(EmbeddingError, match="no MedMNIST file that can be used"):
        list(opened(tmp_path / "flipped.npz").pictures(0))


# --- whose image it is ---

RECORDS = (Record("a/1.png", "a", ""), Record("a/2.png", "a", ""), Record("b/3.png", "b", ""))


def test_units_by_the_table_of_the_site(tmp_path: Path) -> None:
    table = tmp_path / "units.csv"
    table.write_text(
        "\ufefffile,ward,patient\nb\\3.png,x,P2\n./a/1.png,y,P1\na/2.png,y,P1\nother.png,z,P3\n"
    )
    assert units.read(table, "patient", RECORDS) == ["P1", "P1", "P2"]
    assert units.read(table, "ward", RECORDS) == ["y", "y", "x"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("file,patient\na/1.png,P1\na/2.png,P1\n", "1 of 3 records: b/3.png"),
        ("file,patient\na/1.png,P1\na/1.png,P2\n", "a/1.png a second time"),
        ("file,patient\na/1.png,\n", "line 2 leaves a column empty"),
        ("file,patient\na/1.png\n", "line 2 leaves a column empty"),
        ("name,patient\n", "no column file; there are name, patient"),
        ("", "no column file, patient"),
        ('file,patient\n"a', "no table of units"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "units.csv").write_text(text)
    with pytest.raises(EmbeddingError, match=re.escape(says)) as caught:
        units.read(tmp_path / "units.csv", "patient", RECORDS)
    assert caught.value.field == "units"


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(EmbeddingError, match="No such file"):
        units.read(tmp_path / "units.csv", "patient", RECORDS)
