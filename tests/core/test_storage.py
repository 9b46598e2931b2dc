"""The object store: what is written can be read, what cannot be written says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import ObjectCorrupt, ObjectMissing, StoreUnavailable
from core.storage import ObjectStore, sha256_of


def test_bytes_come_back_under_their_digest_and_go_for_good(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path.as_uri())
    kept = store.put(b"some bytes")
    assert (kept.digest, kept.size) == (sha256_of(b"some bytes"), 10)
    assert store.put(b"some bytes") == kept
    assert store.get(kept.digest) == b"some bytes"
    assert store.delete(kept.digest)
    assert not store.exists(kept.digest)
    assert not store.delete(kept.digest)
    with pytest.raises(ObjectMissing):
        store.get(kept.digest)


def test_torn_bytes_are_noticed_and_written_again(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path.as_uri())
    kept = store.put(b"some bytes")
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    file.write_bytes(b"some b")
    with pytest.raises(ObjectCorrupt):
        store.get(kept.digest)
    assert store.put(b"some bytes") == kept
    assert store.get(kept.digest) == b"some bytes"


def test_a_store_that_takes_no_bytes_says_so_and_what_to_do(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path.as_uri())
    (tmp_path / "sha256").write_text("a file where a folder belongs")
    with pytest.raises(StoreUnavailable, match="cannot be written") as caught:
        store.put(b"some bytes")
    assert "\n" not in caught.value.message
    assert caught.value.mend is not None
    (tmp_path / "sha256").unlink()
    assert store.get(store.put(b"some bytes").digest) == b"some bytes"
