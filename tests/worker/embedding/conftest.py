"""Images for the tests of ``fedhypevae embed``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.worker.embedding.support import write_folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_folder(tmp_path / "images", 20, 4)
    return tmp_path / "images"
