"""The folder beside the output in which embeddings gather until all are there.

``x.f32`` takes one batch after the other, ``done.jsonl`` a line for each, written after it. A
process that was killed is continued where the last whole line says; the rest is thrown away.
A batch belongs to exactly the images that it was made from, so a changed image is embedded again.
Nothing here is ever read as the output, which appears by one rename.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from worker.errors import EmbeddingError

_ROWS = "x.f32"
_DONE = "done.jsonl"
_OUTPUT = "out.npz"


@dataclass(frozen=True)
class Done:
    """One batch: which of its images were embedded, and why the others were not."""

    key: str
    kept: tuple[int, ...]
    broken: tuple[tuple[int, str], ...]
    digest: str


class WorkingFolder:
    """Made by ``opened``; mode 0700, as embeddings are records. Appends are on disk on return."""

    def __init__(self, out: Path, folder: Path, dim: int) -> None:
        self.out = out
        self._folder = folder
        self._dim = dim
        self._rows = folder / _ROWS
        self._log = folder / _DONE
        self.done: list[Done] = []

    def resume(self, keys: Sequence[str], *, skip_broken: bool) -> int:
        """Keep the batches that are as ``keys`` has them, from the first on; how many those are."""
        self.done = []
        offset = 0
        for key, line in zip(keys, self._lines(), strict=False):
            size = len(line.kept) * self._dim * 4
            with self._open(_ROWS, os.O_RDWR | os.O_CREAT) as file:
                body = os.pread(file, size, offset)
            same = line.key == key and _digest(body) == line.digest
            if not same or (line.broken and not skip_broken):
                break
            self.done.append(line)
            offset += size
        self._cut(offset)
        return len(self.done)

    def append(
        self,
        key: str,
        kept: Sequence[int],
        broken: Sequence[tuple[int, str]],
        x: NDArray[np.float32],
    ) -> None:
        """One more batch: embeddings [len(kept), dim]."""
        body = np.ascontiguousarray(x, dtype="<f4").tobytes()
        line = Done(key, tuple(kept), tuple(broken), _digest(body))
        self._add(_ROWS, body)
        self._add(_DONE, json.dumps(asdict(line)).encode() + b"\n")
        self.done.append(line)

    def rows(self) -> NDArray[np.float32]:
        """All embeddings so far [n, dim], read as they are used."""
        count = sum(len(line.kept) for line in self.done)
        if count == 0:
            return np.zeros((0, self._dim), np.float32)
        return np.memmap(self._rows, dtype="<f4", mode="r", shape=(count, self._dim))

    def finish(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Write ``arrays`` as the output, mode 0600, and remove this folder."""
        with self._failing():
            part = self._folder / _OUTPUT
            with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.out)
            for name in (_ROWS, _DONE):
                (self._folder / name).unlink(missing_ok=True)
            self._folder.rmdir()
            with _descriptor(self.out.parent, os.O_RDONLY) as parent:
                os.fsync(parent)

    def _lines(self) -> Iterator[Done]:
        try:
            text = self._log.read_bytes()
        except FileNotFoundError:
            return
        for line in text.splitlines(keepends=True):
            try:
                raw = json.loads(line)
                broken = tuple((int(row), str(why)) for row, why in raw["broken"])
                yield Done(str(raw["key"]), tuple(raw["kept"]), broken, str(raw["digest"]))
            except (ValueError, KeyError, TypeError):  # cut by the end of a process
                return

    def _cut(self, offset: int) -> None:
        with self._failing():
            with self._open(_ROWS, os.O_RDWR | os.O_CREAT) as file:
                os.ftruncate(file, offset)
            body = b"".join(json.dumps(asdict(line)).encode() + b"\n" for line in self.done)
            with self._open(_DONE, os.O_RDWR | os.O_CREAT | os.O_TRUNC) as file:
                _write(file, body)

    def _add(self, name: str, body: bytes) -> None:
        with self._failing(), self._open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as file:
            _write(file, body)

    def _open(self, name: str, flags: int) -> contextlib.AbstractContextManager[int]:
        return _descriptor(self._folder / name, flags)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _not_written(self.out, error) from None


@contextmanager
def opened(out: Path, dim: int) -> Iterator[WorkingFolder]:
    """The folder for ``out``, for one process at a time."""
    folder = out.parent / f".{out.name}.embedding"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise _not_written(out, error) from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EmbeddingError(
                f"another process is making {out}.", field="out", mend="Wait for it, or stop it."
            ) from None
        yield WorkingFolder(out, folder, dim)
    finally:
        os.close(handle)


@contextmanager
def _descriptor(path: Path, flags: int) -> Iterator[int]:
    handle = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield handle
    finally:
        os.close(handle)


def _write(handle: int, body: bytes) -> None:
    view = memoryview(body)
    while view:
        view = view[os.write(handle, view) :]
    os.fsync(handle)


def _digest(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=32).hexdigest()


def _not_written(out: Path, error: OSError) -> EmbeddingError:
    return EmbeddingError(
        f"cannot write {out}: {error.strerror or error}.",
        field="out",
        mend="Give a path in a folder that takes files, on a disk with room.",
    )
