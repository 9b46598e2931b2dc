"""From pictures to rows: decode ahead in threads, embed batch by batch, keep each batch at once."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice

import numpy as np
from torch import Tensor

from core.federation.plan import EmbeddingSpace, digest_of
from worker.embedding import pictures
from worker.embedding.backbone import Backbone
from worker.embedding.pictures import BrokenImage
from worker.embedding.sources import Picture, Record, Source
from worker.embedding.working import WorkingFolder
from worker.errors import EmbeddingError

_AHEAD = 2  # batches that are decoded while one is embedded
_MOST_THREADS = 16
_SHOWN = 20

Watch = Callable[[int, bool], None]
"""Called with a number of images that are through, and whether they are embedded or only read."""


@dataclass(frozen=True)
class Outcome:
    """``kept``: numbers of the records that have a row, in the order of rows. ``broken``: names of
    images and what is wrong. ``resumed``: records of an earlier call.
    """

    kept: tuple[int, ...]
    broken: tuple[tuple[str, str], ...]
    resumed: int


def embed(
    source: Source,
    backbone: Backbone,
    space: EmbeddingSpace,
    folder: WorkingFolder,
    *,
    batch: int,
    skip_broken: bool = False,
    watch: Watch = lambda _, __: None,
) -> Outcome:
    """Embed every record into ``folder``, continuing what an earlier call left there.

    The same images, weights, options and versions give the same bytes on the same machine. A broken
    image ends the work, unless ``skip_broken``; the rest is then still read, to name all at once.
    """
    pictures.no_warnings()
    keys = _keys(source.records, backbone, space, batch)
    first = folder.resume(keys, skip_broken=skip_broken)
    resumed = min(first * batch, len(source.records))
    watch(resumed, True)
    broken: list[tuple[str, str]] = []
    for number, decoded in enumerate(_decoded(source, backbone, first, batch), start=first):
        names = [record.name for record in source.records[number * batch :][: len(decoded)]]
        faults = [(row, each) for row, each in enumerate(decoded) if isinstance(each, str)]
        broken += [(names[row], why) for row, why in faults]
        if broken and not skip_broken:
            watch(len(decoded), False)
            continue
        kept = [row for row, each in enumerate(decoded) if not isinstance(each, str)]
        tensors = [each for each in decoded if not isinstance(each, str)]
        x = _features(backbone, tensors, [names[row] for row in kept])
        folder.append(keys[number], kept, faults, x)
        watch(len(decoded), True)
    if broken and not skip_broken:
        raise _are_broken(broken)
    return _outcome(source, folder, batch, resumed)


def _outcome(source: Source, folder: WorkingFolder, batch: int, resumed: int) -> Outcome:
    numbered = list(enumerate(folder.done))
    kept = tuple(number * batch + row for number, done in numbered for row in done.kept)
    broken = tuple(
        (source.records[number * batch + row].name, why)
        for number, done in numbered
        for row, why in done.broken
    )
    if not kept:
        raise _are_broken(list(broken))
    return Outcome(kept, broken, resumed)


def _features(backbone: Backbone, tensors: Sequence[Tensor], names: Sequence[str]) -> np.ndarray:
    if not tensors:
        return np.zeros((0, backbone.dim), np.float32)
    x = backbone.features(backbone.stacked(tensors))
    bad = [names[int(row)] for row in np.flatnonzero(~np.isfinite(x).all(axis=1))]
    if bad:
        raise EmbeddingError(
            f"embeddings of {len(bad)} images are not finite: {', '.join(bad[:_SHOWN])}.",
            field="precision",
            mend="Try --precision float32.",
        )
    return x


def _decoded(
    source: Source, backbone: Backbone, first: int, batch: int
) -> Iterator[list[Tensor | str]]:
    """Batch after batch from number ``first``: preprocessed pictures, or why one is broken."""

    def prepare(picture: Picture) -> Tensor | str:
        try:
            return backbone.transform(picture())
        except BrokenImage as error:
            return str(error)

    todo = source.pictures(first * batch)
    waiting: deque[list[Future[Tensor | str]]] = deque()
    threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        try:
            while True:
                while len(waiting) <= _AHEAD and (some := list(islice(todo, batch))):
                    waiting.append([pool.submit(prepare, picture) for picture in some])
                if not waiting:
                    return
                yield [future.result() for future in waiting.popleft()]
        finally:  # an error, or Ctrl-C: what is queued need not be decoded any more
            pool.shutdown(wait=False, cancel_futures=True)


def _keys(
    records: Sequence[Record], backbone: Backbone, space: EmbeddingSpace, batch: int
) -> list[str]:
    """Of each batch: all that its embeddings depend on."""
    common = digest_of(
        {
            "made": [space.backbone, space.weights_digest, space.preprocessing, space.dim],
            "how": [backbone.device, backbone.precision, backbone.channels_last, batch],
            "with": [version(name) for name in ("pillow", "timm", "torch", "torchvision")],
        }
    )
    keys = []
    for start in range(0, len(records), batch):
        digest = hashlib.sha256(common.encode())
        for record in records[start : start + batch]:
            digest.update(f"{record.name}\0{record.stamp}\0".encode(errors="surrogateescape"))
        keys.append(digest.hexdigest())
    return keys


def _are_broken(broken: Sequence[tuple[str, str]]) -> EmbeddingError:
    listed = "".join(f"\n  {name}: {why}" for name, why in broken[:_SHOWN])
    more = f"\n  and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
    return EmbeddingError(
        f"{len(broken)} images cannot be used:{listed}{more}\n",
        field="SOURCE",
        mend="Repair or remove them and call again, which goes on where this stopped; or leave "
        "them out with --skip-broken.",
    )
