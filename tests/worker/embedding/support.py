"""Real images and real weights for the tests of ``fedhypevae embed``."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import Result
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from benchmarks.scanner_digits import load_images, weights_file
from worker.embedding.cli import embed_app

NETWORK = "tf_efficientnet_lite0.in1k"
SIZE = 32  # pixels: small and quick; the code is the same
FAST = ("--backbone", NETWORK, "--weights", str(weights_file()), "--size", str(SIZE))


@cache
def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Real images [n, 28, 28] and their digits, every hundredth of the built-in data set."""
    images, labels = load_images()
    return images[::100].astype(np.uint8), labels[::100]


def write_folder(root: Path, count: int = 20, classes: int = 4) -> list[str]:
    """``count`` PNG files, class by class; their names below ``root``, sorted."""
    images, _ = digits()
    names = []
    for number in range(count):
        name = f"class-{number % classes}/{number:03}.png"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[number % len(images)]).save(root / name)
        names.append(name)
    return sorted(names)


def write_medmnist(path: Path, **changes: Any) -> None:
    """A grey file with 2-D labels, as the data set has it; ``changes`` replace arrays."""
    images, labels = digits()
    cuts = {"train": slice(0, 30), "val": slice(30, 36), "test": slice(36, 50)}
    arrays: dict[str, Any] = {}
    for split, rows in cuts.items():
        arrays[f"{split}_images"] = images[rows]
        arrays[f"{split}_labels"] = labels[rows, None].astype(np.uint8)
    arrays |= changes
    np.savez_compressed(path, **{name: each for name, each in arrays.items() if each is not None})


def call(source: Path, out: Path, *more: object) -> Result:
    """The command, in this process, with the packaged weights and small images."""
    return CliRunner().invoke(
        embed_app, [str(source), "--out", str(out), *FAST, *map(str, more)], catch_exceptions=False
    )


def made(source: Path, out: Path, *more: object) -> dict[str, Any]:
    """What the command says in JSON; it must succeed."""
    result = call(source, out, "--json", *more)
    assert result.exit_code == 0, result.output
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def arrays(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
