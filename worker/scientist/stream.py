"""Many rows, a batch at a time, in constant memory."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.ipc

from core.synthesis.formats import RECEIPT_KEY
from worker.answers import StreamedAnswer
from worker.errors import UnexpectedAnswer
from worker.scientist.rows import Rows


class Stream:
    """Batches of up to 4,096 rows, while the coordinator makes them. Read it once, in a ``for``;
    leave it early by ``close``, or use it in ``with``.

    ``seed``, ``receipt``: known from the start. The receipt that names the rows' content exists
    once all were made: ``Coordinator.receipt(stream.receipt["id"])``. A stream that breaks off
    raises ``Unreachable``, one that is too short ``UnexpectedAnswer``: it never just ends.
    """

    def __init__(self, answer: AbstractContextManager[StreamedAnswer]) -> None:
        self._answer = answer
        opened = answer.__enter__()
        try:
            self._reader = pa.ipc.open_stream(io.BufferedReader(_File(opened.chunks)))
            inside = (self._reader.schema.metadata or {})[RECEIPT_KEY.encode()]
            self.receipt: dict[str, Any] = json.loads(inside)
            self.seed = int(self.receipt["receipt"]["asked"]["seed"])
            self.n = int(self.receipt["receipt"]["n"])
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            self.close()
            raise UnexpectedAnswer(f"the answer is no Arrow stream of rows: {error}") from error
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[Rows]:
        rows = 0
        try:
            for batch in self._reader:
                rows += batch.num_rows
                yield Rows(pa.Table.from_batches([batch]), self.receipt)
        except (pa.ArrowException, OSError) as error:
            raise UnexpectedAnswer(f"the stream of rows cannot be read: {error}") from error
        finally:
            self.close()
        if rows != self.n:
            raise UnexpectedAnswer(f"the stream ended after {rows:,} of {self.n:,} rows")

    def close(self) -> None:
        self._answer.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self.close()


class _File(io.RawIOBase):
    """Chunks of bytes as a file that is only read."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        super().__init__()
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        taken = min(len(buffer), len(self._rest))
        buffer[:taken] = self._rest[:taken]
        self._rest = self._rest[taken:]
        return taken
