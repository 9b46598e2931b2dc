"""Synthetic rows in the hands of a data scientist."""

from __future__ import annotations

import importlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from core.files import whole_file
from core.privacy.premise import in_words
from core.receipts.content import Content, content_of
from core.receipts.reading import RowsFile
from core.synthesis.formats import RECEIPT_KEY
from worker.errors import UnexpectedAnswer

if TYPE_CHECKING:
    import pandas as pd
    from torch.utils.data import TensorDataset


@dataclass(frozen=True, eq=False)
class Rows:
    """``table`` has the columns ``embedding`` (lists of d numbers), ``label``, ``label_id`` and
    those that were asked for. ``receipt`` is the signed one (JSON object); of a batch of a stream
    it is the one that was made before the rows.
    """

    table: pa.Table
    receipt: dict[str, Any]
    _parquet: bytes | None = field(default=None, repr=False)

    @classmethod
    def of_parquet(cls, body: bytes) -> Rows:
        """From an answer in Parquet. Raises ``UnexpectedAnswer``."""
        try:
            file = pq.ParquetFile(io.BytesIO(body))
            receipt = json.loads(file.metadata.metadata[RECEIPT_KEY.encode()])
            return cls(file.read(), receipt, body)
        except (pa.ArrowException, OSError, TypeError, KeyError, ValueError) as error:
            raise UnexpectedAnswer(f"the answer is no Parquet file of rows: {error}") from error

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __repr__(self) -> str:
        return f"Rows({len(self):,} rows of {self.dim}, run {self.run!r}, seed {self.seed})"

    @property
    def dim(self) -> int:
        return int(self.table.schema.field("embedding").type.list_size)

    @property
    def run(self) -> str:
        return str(self.receipt["receipt"]["model"]["run"])

    @property
    def seed(self) -> int:
        """The one that made the rows; the same request with it makes them again."""
        return int(self.receipt["receipt"]["asked"]["seed"])

    @property
    def epsilon(self) -> dict[str, float]:
        """What each client's population has paid for the model, however many rows are asked for."""
        spent = self.receipt["receipt"]["per_client"]
        return {one["client"]: float(one["epsilon"]) for one in spent}

    @property
    def premise(self) -> str:
        """On what ``epsilon`` rests if sums were secure, and what it is without; else empty."""
        return in_words(self.receipt["receipt"].get("views", ()))

    @property
    def labels(self) -> list[str]:
        """Class names [n]."""
        return [str(label) for label in self.table["label"].to_pylist()]

    def arrow(self) -> pa.Table:
        return self.table

    def numpy(self) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
        """x [n, d] and class ids y [n], both writable."""
        kept = [
            chunk.flatten().to_numpy(zero_copy_only=False).reshape(len(chunk), -1)
            for chunk in self.table["embedding"].chunks
        ]
        y = np.array(self.table["label_id"].to_numpy(), np.int64)
        return np.concatenate(kept or [np.empty((0, self.dim), np.float32)]), y

    def dataframe(self) -> pd.DataFrame:
        """One row a row: ``label`` (categorical), ``label_id``, what else was asked for, then
        ``e0`` ... one column a dimension, as in CSV. Needs pandas.
        """
        pandas = _needs("pandas")
        x, _ = self.numpy()
        frame = self.table.drop_columns(["embedding"]).to_pandas()
        wide = pandas.DataFrame(x, columns=[f"e{i}" for i in range(self.dim)], index=frame.index)
        return pandas.concat([frame, wide], axis=1)

    def torch(self) -> TensorDataset:
        """(x float [d], class id) for a ``DataLoader``. Needs torch."""
        torch = _needs("torch")
        x, y = self.numpy()
        data = _needs("torch.utils.data")
        made: TensorDataset = data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
        return made

    def content(self) -> Content:
        """What the rows hold, as a receipt names it."""
        return content_of(self.file().blocks())

    def file(self) -> RowsFile:
        """As ``core.receipts.checking.check`` takes them."""
        x, y = self.numpy()
        return RowsFile(self.receipt, [(x, y)], x.dtype.name)

    def save(self, path: Path | str) -> Path:
        """As Parquet; ``fedhypevae verify`` reads it. The receipt is inside."""
        path = Path(path)
        with whole_file(path) as file:
            if self._parquet is not None:
                file.write(self._parquet)
            else:
                metadata = {RECEIPT_KEY: json.dumps(self.receipt, sort_keys=True)}
                with pq.ParquetWriter(file, self.table.schema, compression="zstd") as writer:
                    writer.write_table(self.table)
                    writer.add_key_value_metadata(metadata)
        return path


def _needs(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(f"install {package} for this: pip install {package}") from error
