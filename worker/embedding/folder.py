"""An image folder: a sub-folder for each class, images at any depth below it.

No symbolic link is followed, whether it names a folder or an image: it may point to the outside.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from worker.embedding import pictures
from worker.embedding.sources import Picture, Record
from worker.errors import EmbeddingError

_SPLITS = frozenset({"train", "val", "valid", "test"})
_SHOWN = 5


@dataclass(frozen=True)
class Folder:
    """Records in the order of their paths; a record's name is its path below ``root``."""

    root: Path
    records: tuple[Record, ...]
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    white: int

    @classmethod
    def open(cls, root: Path, classes: tuple[str, ...] | None, white: int) -> Folder:
        """List the folder. ``classes`` is the vocabulary where this site need not have all."""
        top = _entries(root, "SOURCE")
        folders = [e.name for e in top if e.is_dir(follow_symlinks=False) and not _hidden(e.name)]
        loose = [e.name for e in top if not e.is_dir(follow_symlinks=False) and _is_image(e.name)]
        if loose:
            raise _no_class(f"{len(loose)} images lie in {root} itself: {_some(loose)}.")
        if not folders:
            raise _no_class(f"{root} has no sub-folders.")
        if classes is None and len(folders) > 1 and _SPLITS.issuperset(folders):
            raise EmbeddingError(
                f"the sub-folders of {root} are parts of a data set: {_some(folders)}.",
                field="split",
                mend="Choose one with --split.",
            )
        unknown = sorted(set(folders) - set(classes or folders))
        if unknown:
            raise EmbeddingError(
                f"{root} has sub-folders that are no class: {_some(unknown)}.",
                field="classes",
                mend="Rename or move them, or add them to the classes of every site.",
            )
        found: list[Record] = []
        left: Counter[str] = Counter()
        for name in sorted(folders):
            _walk(root, name, name, found, left)
        if not found:
            raise EmbeddingError(
                f"there is no image below {root}.",
                field="SOURCE",
                mend=f"Images end in {', '.join(sorted(pictures.SUFFIXES))}; convert others.",
            )
        notes = tuple(f"{count:,} {what} left out" for what, count in sorted(left.items()))
        return cls(root, tuple(found), classes or tuple(sorted(folders)), notes, white)

    def pictures(self, start: int) -> Iterator[Picture]:
        """Decoders of the files from number ``start`` on."""
        for record in self.records[start:]:
            yield partial(pictures.from_file, self.root / record.name, self.white)


def _walk(root: Path, below: str, label: str, found: list[Record], left: Counter[str]) -> None:
    for entry in _entries(root / below, "SOURCE"):
        name = f"{below}/{entry.name}"
        if _hidden(entry.name):
            left["hidden files"] += 1
        elif entry.is_symlink():
            left["symbolic links"] += 1
        elif entry.is_dir(follow_symlinks=False):
            _walk(root, name, label, found, left)
        elif _is_image(entry.name):
            facts = entry.stat(follow_symlinks=False)
            found.append(Record(name, label, f"{facts.st_size}:{facts.st_mtime_ns}"))
        else:
            left[f"files ({Path(entry.name).suffix.lower() or 'no ending'})"] += 1


def _entries(folder: Path, field: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise EmbeddingError(
            f"cannot read the folder {folder}: {error.strerror or error}.",
            field=field,
            mend="Check the path and its permissions.",
        ) from None


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in pictures.SUFFIXES and not _hidden(name)


def _hidden(name: str) -> bool:
    return name.startswith(".")


def _no_class(what: str) -> EmbeddingError:
    return EmbeddingError(
        what, field="SOURCE", mend="Put the images of each class into a sub-folder named after it."
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
