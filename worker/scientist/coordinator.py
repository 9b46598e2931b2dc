"""What a data scientist asks a coordinator for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, Unpack

from core.files import whole_file
from core.privacy.premise import NONE
from core.receipts.checking import Findings, PublicKeys, check, signed_of
from core.receipts.reading import RowsFile
from core.storage import sha256_of
from core.synthesis.request import SynthesisRequest
from worker.answers import JsonObject, Retry, Timeouts
from worker.client import CoordinatorClient
from worker.config import load_settings
from worker.errors import ApiProblem, DownloadCorrupt, UnexpectedAnswer
from worker.operations.base import path_part
from worker.scientist import files
from worker.scientist.rows import Rows
from worker.scientist.stream import Stream

Mixture = Literal["neutral"] | Mapping[str, float]
Labels = Literal["model", "uniform"] | Mapping[str, float]
Round = int | Literal["latest"]
ARROW = "application/vnd.apache.arrow.stream"


class Asked(TypedDict, total=False):
    """What may be said about rows; see ``core.synthesis.request``.

    ``mixture``: "neutral", or clients or domains and their weights; with ``mode`` "sample" each
    row is of one client, with "blend" all are of the blended code. ``labels``: as frequent as the
    model says, "uniform", or class -> share; ``class_counts`` instead of n: class -> rows.
    """

    round: Round
    mixture: Mixture
    mode: Literal["blend", "sample"]
    labels: Labels
    class_counts: Mapping[str, int]
    seed: int
    temperature: float
    guidance: Literal["model", "none"]
    dtype: Literal["float16", "float32", "float64"]
    columns: Sequence[Literal["domain", "code_id"]]


@dataclass(frozen=True)
class Run:
    """A run as the coordinator lists it; ``raw`` is all that it says."""

    id: str
    name: str
    state: str
    clients: tuple[str, ...]
    classes: tuple[str, ...]
    dim: int
    rounds_published: int
    raw: JsonObject = field(repr=False)


@dataclass(frozen=True)
class Model:
    """The published model of a run. ``clients``: who has a code, hence a place in mixtures.
    ``domains``: label -> clients, for which a mixture may name it.
    ``epsilon``: what each client's population has paid for it, at ``delta``, per ``unit``;
    of secure sums on ``premise``, otherwise that is ``none``.
    """

    run: Run
    round: int
    clients: tuple[str, ...]
    domains: dict[str, tuple[str, ...]]
    epsilon: dict[str, float]
    delta: float
    unit: str
    premise: str
    relation: str
    weights_digest: str

    @property
    def classes(self) -> tuple[str, ...]:
        return self.run.classes


class Coordinator:
    """A coordinator, with a token of scope ``scientist``. Close it, or use it in ``with``.

    Without ``url`` and ``token``: FHV_COORDINATOR_URL and FHV_TOKEN. Every call repeats what says
    "not now" (429, 502, 503, 504, no connection), as ``retry`` allows, and waits as long as the
    coordinator asks. Runs are named by their name or id.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        retry: Retry | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        if url is None or token is None:
            settings = load_settings()
            url, token = url or settings.coordinator_url, token or settings.require_token()
        self._client = CoordinatorClient(url, token, retry=retry, timeouts=timeouts)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Coordinator({self._client.base_url!r})"

    def close(self) -> None:
        self._client.close()

    # --- what there is ---

    def runs(self) -> list[Run]:
        """All of them, oldest first."""
        return list(self._runs())

    def _runs(self) -> Iterator[Run]:
        query: dict[str, str | int] = {}
        while True:
            page = self._client.runs(**query)
            yield from map(_run, page["items"])
            if page["next"] is None:
                return
            query["after"] = page["next"]

    def run(self, name: str) -> Run:
        """Raises ``ApiProblem`` (``not-found``)."""
        found = next((run for run in self._runs() if name in (run.name, run.id)), None)
        if found is None:
            raise ApiProblem(
                problem="not-found", status=404, detail=f"there is no run {name!r}", field="run"
            )
        return found

    def model(self, run: str, round: Round = "latest") -> Model:  # noqa: A002 (as in the API)
        of = self.run(run)
        found = self._client.model(of.id, round)
        spent = found["per_client"]
        return Model(
            run=of,
            round=found["round"],
            clients=tuple(found["clients"]),
            domains={label: tuple(names) for label, names in found["domains"].items()},
            epsilon={one["client"]: float(one["epsilon"]) for one in spent},
            delta=float(of.raw["spec"]["plan"]["privacy"]["delta"]),
            unit=str(of.raw["spec"]["plan"]["privacy"]["unit"]),
            premise=str(found.get("premise", NONE)),
            relation=found["relation"],
            weights_digest=found["weights"]["digest"],
        )

    # --- rows ---

    def synthesize(self, run: str, n: int | None = None, **asked: Unpack[Asked]) -> Rows:
        """``n`` rows, or ``class_counts`` of each class, at once; for many take ``stream``.

        The same ``seed`` makes the same rows; without one it is drawn (``Rows.seed``). Raises
        pydantic's ``ValidationError`` for what no coordinator would take.
        """
        return Rows.of_parquet(self._client.synthesize_table(_request(run, n, asked)).body)

    def stream(self, run: str, n: int | None = None, **asked: Unpack[Asked]) -> Stream:
        """The same rows as ``synthesize``, a batch at a time, in constant memory."""
        body = {**_request(run, n, asked), "format": "arrow"}
        headers = {"Accept": f"{ARROW}, application/problem+json"}
        return Stream(self._client.streamed("POST", "/v1/synthesize", json=body, headers=headers))

    def file(
        self,
        run: str,
        path: Path | str,
        n: int | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
        **asked: Unpack[Asked],
    ) -> Path:
        """The same rows as Parquet in a file, made by a worker: for more rows than the coordinator
        makes while one waits (``job-needed``). ``progress``: (rows made, rows asked for). A broken
        download is continued. Raises ``FileNotMade``.
        """
        body = {**_request(run, n, asked), "format": "parquet"}
        job = files.made(self._client, self._client.ask_file(body), progress)
        with whole_file(Path(path)) as file:
            files.download(self._client, f"/v1/synthesis-jobs/{path_part(job['id'])}/file", file)
        return Path(path)

    # --- to take away, and proof ---

    def export(self, run: str, path: Path | str, round: Round = "latest") -> Path:  # noqa: A002
        """The generator as one file (``core.synthesis.export.load``, ``fedhypevae sample``). A
        folder gets the coordinator's name for it. Raises ``DownloadCorrupt``.
        """
        path = Path(path)
        where = f"/v1/runs/{path_part(run)}/export"
        with self._client.streamed("GET", where, params={"round": round}) as answer:
            body = b"".join(answer.chunks)
        digest = sha256_of(body)
        if answer.headers.get("etag") != f'"{digest}"':
            raise DownloadCorrupt("the bytes received are not the exported generator")
        if path.is_dir():
            path /= _name(answer.headers.get("content-disposition", ""), digest)
        with whole_file(path) as file:
            file.write(body)
        return path

    def receipt(self, receipt_id: str) -> JsonObject:
        """The signed receipt of rows that this coordinator made."""
        return self._client.receipt(receipt_id)

    def keys(self) -> PublicKeys:
        """Public keys that sign receipts; keep them to verify without a network."""
        return PublicKeys.model_validate(self._client.receipt_keys())

    def verify(self, what: Rows | JsonObject) -> Findings:
        """Is a receipt genuine, and are rows those that it names? Checked here, by the
        coordinator's public keys. Raises ``ReceiptInvalid`` for what is no receipt.
        """
        file = what.file() if isinstance(what, Rows) else RowsFile(what, (), "")
        return check(file, signed_of(file.receipt), self.keys())


def _request(run: str, n: int | None, asked: Mapping[str, Any]) -> JsonObject:
    """The body of a request. Raises ``ValidationError`` before anything is sent."""
    plain = {key: dict(it) if isinstance(it, Mapping) else it for key, it in asked.items()}
    request = SynthesisRequest.model_validate({**plain, "run": run, "n": n})
    dumped: JsonObject = request.model_dump(mode="json", exclude_none=True)
    return dumped


def _run(raw: JsonObject) -> Run:
    try:
        space = raw["spec"]["space"]
        return Run(
            id=str(raw["id"]),
            name=raw["name"],
            state=raw["state"],
            clients=tuple(raw["clients"]),
            classes=tuple(space["classes"]),
            dim=int(space["dim"]),
            rounds_published=int(raw["rounds_published"]),
            raw=raw,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UnexpectedAnswer(f"a run in the answer lacks {error}") from error


def _name(disposition: str, digest: str) -> str:
    """The file name that the coordinator gives; never a path."""
    name = Path(disposition.partition('filename="')[2].partition('"')[0]).name
    return name if name.endswith(".safetensors") else f"{digest[7:23]}.safetensors"
