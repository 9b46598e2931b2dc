"""Synthetic rows as Parquet or JSON, each with the receipt that says what they are."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from core.synthesis.sampler import Samples

RECEIPT_KEY = "fedhypevae.receipt"


def to_table(samples: Samples, receipt: dict[str, Any]) -> pa.Table:
    """Columns ``embedding`` (fixed-size list of d floats), ``label`` (text), ``label_id``."""
    flat = pa.array(np.ascontiguousarray(samples.x).reshape(-1), type=pa.float32())
    names = pa.array(samples.classes)
    labels = pa.DictionaryArray.from_arrays(pa.array(samples.y, pa.int32()), names)
    return pa.table(
        {
            "embedding": pa.FixedSizeListArray.from_arrays(flat, samples.x.shape[1]),
            "label": labels,
            "label_id": pa.array(samples.y, pa.int32()),
        }
    ).replace_schema_metadata({RECEIPT_KEY: json.dumps(samples.marked(receipt), sort_keys=True)})


def to_parquet(samples: Samples, receipt: dict[str, Any]) -> bytes:
    """A Parquet file; the receipt is in the schema metadata under ``RECEIPT_KEY``."""
    sink = io.BytesIO()
    pq.write_table(to_table(samples, receipt), sink, compression="zstd", use_dictionary=["label"])
    return sink.getvalue()


def to_json(samples: Samples, receipt: dict[str, Any]) -> dict[str, Any]:
    """A JSON-able document: rows as lists of d numbers beside labels."""
    return {
        "n": len(samples.y),
        "classes": list(samples.classes),
        "labels": samples.labels(),
        "label_ids": samples.y.tolist(),
        "embeddings": samples.x.tolist(),
        "receipt": samples.marked(receipt),
    }
