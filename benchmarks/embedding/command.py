"""The command line: make images, measure both by turns, then the table and the last line."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from benchmarks.clipping import machine
from benchmarks.last_line import RESULTS, Target, at_least, finish, show, shown
from benchmarks.options import OptionParser
from benchmarks.scanner_digits import NETWORK, weights_file
from worker.embedding import contract, pictures
from worker.embedding.backbone import Backbone
from worker.embedding.run import embed
from worker.embedding.sources import Source, open_source
from worker.embedding.working import opened
from worker.errors import EmbeddingError

PROGRAM = "python -m benchmarks.embedding"
NAME = "embedding"
# Decoding and resizing share the cores with the network; without a GPU they cannot be hidden.
TARGET = 0.8
_BATCH = 32
_SIDE = 320  # pixels of a photograph's side


class Took(NamedTuple):
    """Of a clock, and of the processor: the second says something on a busy machine, too."""

    wall: float
    processor: float

    @classmethod
    def by(cls, work: Callable[[], None]) -> Took:
        wall, processor = time.perf_counter(), time.process_time()
        work()
        return cls(time.perf_counter() - wall, time.process_time() - processor)


@dataclass
class Measured:
    """Of each turn for all images: seconds, and seconds of the processor by all threads."""

    images: int
    whole: list[Took] = field(default_factory=list)
    bare: list[Took] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 whatever was measured, 1 if it cannot be, 2 for a wrong option, 130 if
    stopped.
    """
    parser = OptionParser(prog=PROGRAM, description=sys.modules["benchmarks.embedding"].__doc__)
    parser.add_argument("--images", type=int, default=256, help="a multiple of 32")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--backbone", default=NETWORK)
    parser.add_argument("--weights", type=Path, default=None, help="of --backbone")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON")
    arguments = parser.parse_args(argv)
    if arguments.images < _BATCH or arguments.images % _BATCH or arguments.turns < 1:
        parser.error(f"--images takes a multiple of {_BATCH}, --turns a number from 1")
    weights = arguments.weights or weights_file()
    try:
        network = Backbone.open(arguments.backbone, weights, device=arguments.device)
        run(network, arguments.images, arguments.turns, arguments.results)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; nothing was written\n")
        return 130
    except EmbeddingError as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n")
        return 1
    return 0


def run(network: Backbone, images: int, turns: int, results: Path) -> Measured:
    """Measure, show and write."""
    console, facts, began = Console(), machine.facts(), time.monotonic()
    found = Measured(images)
    with (
        tempfile.TemporaryDirectory(prefix="fhv-embed-") as name,
        Progress(console=Console(stderr=True)) as progress,
    ):
        folder = Path(name)
        write_photographs(folder / "photographs", images)
        source = open_source(
            folder / "photographs", split=None, classes=None, white=pictures.FULL_WHITE
        )
        batches = prepared(network, source)
        bar = progress.add_task("embedding", total=turns + 1)
        for turn in range(-1, turns):  # the first warms up
            took = (
                Took.by(lambda: whole(network, source, folder)),
                Took.by(lambda: bare(network, batches)),
            )
            if turn >= 0:
                found.whole.append(took[0])
                found.bare.append(took[1])
            progress.advance(bar)
    numbers, goals = figures(found), targets(found)
    seconds = time.monotonic() - began
    show(console, facts, seconds, shown(numbers, goals))
    more = {
        "machine": facts,
        "network": f"{network.name} of {network.size} pixels, {network.precision} on "
        f"{network.device}, batches of {_BATCH}",
    }
    finish(console, results, NAME, {**numbers, "seconds": round(seconds, 1)}, goals, more)
    return found


def write_photographs(root: Path, count: int) -> None:
    """``count`` JPEG files of two classes: crops of real photographs, no two the same."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    photographs = load_sample_images().images
    for number in range(count):
        pixels = photographs[number % 2]
        top, left = (int(rng.integers(0, extent - _SIDE + 1)) for extent in pixels.shape[:2])
        path = root / f"photograph-{number % 2}" / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[top:, left:][:_SIDE, :_SIDE]).save(path, quality=90)


def prepared(network: Backbone, source: Source) -> list[Tensor]:
    """All pictures as the network takes them, in batches."""
    tensors = [network.transform(picture()) for picture in source.pictures(0)]
    return [network.stacked(tensors[at : at + _BATCH]) for at in range(0, len(tensors), _BATCH)]


def whole(network: Backbone, source: Source, folder: Path) -> None:
    """From files to an output file, as the command does it."""
    space = contract.made(network, pictures.FULL_WHITE, "photographs", source.classes)
    out = folder / "out.npz"
    with opened(out, network.dim) as working:
        embed(source, network, space, working, batch=_BATCH)
        working.finish({"x": working.rows()})
    out.unlink()


def bare(network: Backbone, batches: Sequence[Tensor]) -> None:
    """The network alone."""
    for batch in batches:
        network.features(batch)


def figures(found: Measured) -> Mapping[str, float]:
    numbers = {}
    for name, turns in (("", found.whole), ("bare-", found.bare)):
        wall, processor = (median(each) for each in zip(*turns, strict=True))
        numbers[f"{name}images-per-second"] = round(found.images / wall, 2)
        numbers[f"{name}processor-ms-per-image"] = round(1e3 * processor / found.images, 2)
    return numbers


def targets(found: Measured) -> Mapping[str, Target]:
    """Medians of the turns' ratios: a machine's slow moments are in both halves of a turn."""
    turns = list(zip(found.whole, found.bare, strict=True))
    return {
        "embed-to-bare": at_least(median(b.wall / w.wall for w, b in turns), TARGET),
        "embed-to-bare-processor": at_least(
            median(b.processor / w.processor for w, b in turns), TARGET
        ),
    }
