"""What is measured, part by part; each beside its bare counterpart in the same run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import psutil

from benchmarks.synthesis.http import Caller
from benchmarks.synthesis.published import Published
from core.receipts.content import Content
from core.synthesis.formats import FORMATS
from core.synthesis.formats.document import Document, Reading, Receipt
from core.synthesis.one_thread import one_thread
from core.synthesis.request import SynthesisRequest
from core.synthesis.rows import Block

Step = Callable[[], None]
STREAM_ROWS = {"arrow": 100_000, "parquet": 100_000, "json": 20_000}
TURNS, SHORT_ROWS, SHORT_TURNS = 5, 1_000, 60
FEW, MANY = 10_000, 10_000_000
STREAMS = 4
_SEED = 7


@dataclass(frozen=True)
class Rate:
    """Rows a second: of each turn, ours and bare."""

    kind: str
    ours: tuple[float, ...]
    bare: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Of the medians."""
        return median(self.ours) / median(self.bare)


@dataclass(frozen=True)
class Short:
    """Seconds of one answer of n = 1,000 rows as ``kind``, ours and bare."""

    kind: str
    ours: tuple[float, ...]
    bare: tuple[float, ...]


@dataclass(frozen=True)
class Memory:
    """Peak MiB of the coordinator after answers of so many rows; rows a second of the longest."""

    before_mib: float
    few_mib: float
    many_mib: float
    rows_per_s: float


@dataclass(frozen=True)
class Together:
    """``seconds`` of each of four equal streams at once, and of one alone; health checks beside
    the four.
    """

    seconds: tuple[float, ...]
    alone_s: float
    health_s: tuple[float, ...]


class _Bare(Document):
    """One block after the other in one thread, and nothing is hashed."""

    def read(self) -> Reading:
        return _Rows(self)


class _Rows(Reading):
    def __init__(self, document: Document) -> None:
        super().__init__(document)
        self._receipt = {}
        self._rows = document.rows

    def __iter__(self) -> Iterator[Block]:
        return (self._rows.block(number) for number in range(len(self._rows)))


def _nothing(_: Content) -> Receipt:
    return {}


def bare(model: Published, kind: str, n: int) -> float:
    """Seconds of the decoder and the same writer in this process, in one thread."""
    request = SynthesisRequest.model_validate(_request(model, kind, n))
    made = model.generator.document(request, _SEED)
    document = _Bare(
        made.rows, made.classes, made.codes, made.dim, {}, _nothing, made.dtype, made.columns
    )
    with one_thread():
        began = time.perf_counter()
        for _piece in FORMATS[kind].pieces(document):
            pass
        return time.perf_counter() - began


def _request(model: Published, kind: str, n: int) -> dict[str, object]:
    return {"run": model.run, "n": n, "seed": _SEED, "format": kind}


def rate(model: Published, caller: Caller, kind: str, step: Step) -> Rate:
    """In turns, so that a slower machine slows both."""
    n, ours, alone = STREAM_ROWS[kind], [], []
    caller.synthesise(_request(model, kind, 10))
    for _ in range(TURNS):
        alone.append(n / bare(model, kind, n))
        ours.append(n / caller.synthesise(_request(model, kind, n)).seconds)
        step()
    return Rate(kind, tuple(ours), tuple(alone))


def short(model: Published, caller: Caller, kind: str, step: Step) -> Short:
    ours, alone = [], []
    for _ in range(SHORT_TURNS):
        alone.append(bare(model, kind, SHORT_ROWS))
        ours.append(caller.synthesise(_request(model, kind, SHORT_ROWS)).seconds)
    step()
    return Short(kind, tuple(ours), tuple(alone))


def memory(model: Published, caller: Caller, pid: int, step: Step) -> Memory:
    process = psutil.Process(pid)
    before = _mib(process)
    few = _peak_while(process, lambda: caller.synthesise(_request(model, "arrow", FEW)))
    step()
    began = time.perf_counter()
    many = _peak_while(process, lambda: caller.synthesise(_request(model, "arrow", MANY)))
    seconds = time.perf_counter() - began
    step()
    return Memory(before, few, many, MANY / seconds)


def _mib(process: psutil.Process) -> float:
    return float(process.memory_info().rss / 2**20)


def _peak_while(process: psutil.Process, work: Callable[[], object]) -> float:
    """The largest resident set seen while ``work`` ran; looked at every 20 ms."""
    done, peak = threading.Event(), [0.0]

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], _mib(process))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(peak[0], _mib(process))


def together(model: Published, make: Callable[[], Caller], step: Step) -> Together:
    request = _request(model, "arrow", STREAM_ROWS["arrow"])
    caller = make()
    alone = caller.synthesise(request).seconds
    step()
    seconds, health = [0.0] * STREAMS, list[float]()
    ended = threading.Event()

    def stream(place: int) -> None:
        own = make()
        seconds[place] = own.synthesise({**request, "seed": place}).seconds
        own.close()

    def watch() -> None:
        own = make()
        while not ended.wait(0.05):
            health.append(own.health())
        own.close()

    streams = [threading.Thread(target=stream, args=(place,)) for place in range(STREAMS)]
    watcher = threading.Thread(target=watch)
    for thread in (watcher, *streams):
        thread.start()
    for thread in streams:
        thread.join()
    ended.set()
    watcher.join()
    caller.close()
    step()
    return Together(tuple(seconds), alone, tuple(health))
