"""What images come from: records with name and label, and their pictures one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL.Image import Image

from worker.errors import EmbeddingError

Picture = Callable[[], Image]  # decodes; raises BrokenImage


@dataclass(frozen=True)
class Record:
    """``name`` within the source, ``label`` a class name; ``stamp`` changes with the bytes."""

    name: str
    label: str
    stamp: str


class Source(Protocol):
    """``records`` in a fixed order, ``classes`` of the source, ``notes`` for a person: what was
    left out because it is no image.
    """

    @property
    def records(self) -> Sequence[Record]: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def notes(self) -> Sequence[str]: ...

    def pictures(self, start: int) -> Iterator[Picture]:
        """Of the records from number ``start`` on, each to be decoded in any thread."""
        ...


def open_source(
    path: Path, *, split: str | None, classes: tuple[str, ...] | None, white: int
) -> Source:
    """A folder with a sub-folder per class, or a MedMNIST ``.npz``."""
    from worker.embedding.folder import Folder
    from worker.embedding.medmnist import MedMnist

    if path.is_dir():
        return Folder.open(path if split is None else path / split, classes, white)
    if path.suffix == ".npz" and path.is_file():
        return MedMnist.open(path, split or "train", classes, white)
    raise EmbeddingError(
        f"{path} is no folder and no .npz file.",
        field="SOURCE",
        mend="Give a folder with a sub-folder of images for each class, or a MedMNIST file.",
    )
