"""A MedMNIST file: ``train_images`` [n, h, w] or [n, h, w, 3], ``train_labels`` [n] or [n, 1], and
the same for ``val`` and ``test``. Images are read one by one out of the archive, never as a whole.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from worker.embedding import pictures
from worker.embedding.sources import Picture, Record
from worker.errors import EmbeddingError

SPLITS = ("train", "val", "test")
_MOST_LABELS = 1 << 30  # bytes
# ``zipfile`` raises NotImplementedError for a member whose compression it does not know.
_UNREADABLE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error,
               NotImplementedError)  # fmt: skip


@dataclass(frozen=True)
class _Images:
    """The header of one array of images."""

    member: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]

    @property
    def one(self) -> int:
        """Bytes of an image."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


@dataclass(frozen=True)
class MedMnist:
    """Records in the order of the file; the names are ``train/0``, ``train/1`` and so on."""

    path: Path
    records: tuple[Record, ...]
    classes: tuple[str, ...]
    white: int
    parts: tuple[_Images, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def open(cls, path: Path, split: str, classes: tuple[str, ...] | None, white: int) -> MedMnist:
        """Read labels and headers. Label k is called ``classes[k]``, or k without ``classes``."""
        if split not in (*SPLITS, "all"):
            raise EmbeddingError(
                f"a MedMNIST file has no split {split!r}.",
                field="split",
                mend=f"There are {', '.join(SPLITS)}, and all for the three together.",
            )
        try:
            facts = path.stat()
            with zipfile.ZipFile(path) as archive:
                labels = {each: _labels(archive, each) for each in SPLITS if _has(archive, each)}
                chosen = tuple(labels) if split == "all" else (split,)
                if not chosen or not set(chosen) <= set(labels):
                    raise _unusable(path, f"there is no {split}_images with {split}_labels")
                parts = tuple(_header(archive, f"{each}_images.npy") for each in chosen)
        except _UNREADABLE as error:
            raise _unusable(path, str(error) or type(error).__name__) from None
        highest = max((int(each.max()) for each in labels.values() if len(each)), default=-1)
        names = classes or tuple(str(label) for label in range(highest + 1))
        if highest >= len(names):
            raise EmbeddingError(
                f"{path} has label {highest}, which is none of {len(names)} classes.",
                field="classes",
                mend="Name a class for each label, from 0 on.",
            )
        stamp = f"{facts.st_size}:{facts.st_mtime_ns}"
        records: list[Record] = []
        for each, part in zip(chosen, parts, strict=True):
            if part.shape[0] != len(labels[each]):
                raise _unusable(
                    path, f"{part.shape[0]} {each} images have {len(labels[each])} labels"
                )
            records += (
                Record(f"{each}/{row}", names[label], stamp)
                for row, label in enumerate(labels[each].tolist())
            )
        if not records:
            raise _unusable(path, f"{split} is empty")
        return cls(path, tuple(records), names, white, parts)

    def pictures(self, start: int) -> Iterator[Picture]:
        """Decoders of the images from number ``start`` on."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                for part in self.parts:
                    for pixels in _rows(archive, part, start):
                        yield partial(pictures.from_array, pixels, self.white)
                    start = max(0, start - part.shape[0])
        except _UNREADABLE as error:
            raise _unusable(self.path, str(error) or type(error).__name__) from None


def _has(archive: zipfile.ZipFile, split: str) -> bool:
    return {f"{split}_images.npy", f"{split}_labels.npy"} <= set(archive.namelist())


def _labels(archive: zipfile.ZipFile, split: str) -> NDArray[np.int64]:
    name = f"{split}_labels.npy"
    if archive.getinfo(name).file_size > _MOST_LABELS:
        raise ValueError(f"{name} is larger than a GiB")
    with archive.open(name) as file:
        found = npy.read_array(file, allow_pickle=False)
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.ndim != 1:
        raise ValueError(
            f"{name} is {list(found.shape)}: images have several labels, a record has one class"
        )
    if found.dtype.kind not in "iu" or (len(found) and int(found.min()) < 0):
        raise ValueError(f"{name} holds no class numbers from 0 on")
    return found.astype(np.int64)


def _header(archive: zipfile.ZipFile, name: str) -> _Images:
    with archive.open(name) as file:
        shape, fortran, dtype = _read_header(file)
        start = file.tell()
    usual = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
    if not usual or dtype not in (np.uint8, np.uint16) or 0 in shape[1:]:
        raise ValueError(
            f"{name} is {dtype} {list(shape)}; "
            "images are uint8 (or uint16) [n, h, w] or [n, h, w, 3]"
        )
    if fortran:
        raise ValueError(f"{name} is stored column by column")
    if shape[1] * shape[2] > pictures.MAX_PIXELS:
        raise ValueError(f"{name} has images of more than {pictures.MAX_PIXELS:,} pixels")
    part = _Images(name, dtype, shape)
    if archive.getinfo(name).file_size != start + part.one * shape[0]:
        raise ValueError(f"{name} is not as long as its header says")
    return part


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    version = npy.read_magic(file)
    if version == (1, 0):
        return npy.read_array_header_1_0(file)
    return npy.read_array_header_2_0(file)


def _rows(archive: zipfile.ZipFile, part: _Images, start: int) -> Iterator[NDArray[np.generic]]:
    with archive.open(part.member) as file:
        _read_header(file)
        for row in range(part.shape[0]):
            body = file.read(part.one)
            if len(body) != part.one:
                raise ValueError(f"{part.member} ends after {row} images")
            if row >= start:
                yield np.frombuffer(body, part.dtype).reshape(part.shape[1:])


def _unusable(path: Path, why: str) -> EmbeddingError:
    return EmbeddingError(
        f"{path} is no MedMNIST file that can be used: {why}.",
        field="SOURCE",
        mend="Download it again, or write the images into a folder with a sub-folder per class.",
    )
