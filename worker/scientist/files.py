"""Files of rows that a worker makes while nobody has to stay connected."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import BinaryIO

from worker.answers import JsonObject
from worker.client import CoordinatorClient
from worker.errors import DownloadCorrupt, FileNotMade, Unreachable

_PAUSE_S = 1.0
_UNDER_WAY = frozenset({"ready", "leased"})


def made(
    client: CoordinatorClient, job: JsonObject, progress: Callable[[int, int], None] | None
) -> JsonObject:
    """The job once its file is there. ``progress`` is told (rows made, rows asked for). Raises
    ``FileNotMade``. Whoever stops waiting (Ctrl-C) gives the job up.
    """
    try:
        while job["state"] in _UNDER_WAY:
            time.sleep(_PAUSE_S)
            job = client.file_job(job["id"])
            if progress is not None:
                progress(job["rows_done"], job["rows"])
    except KeyboardInterrupt:
        client.cancel_file(job["id"])
        raise
    if job["state"] != "done":
        raise FileNotMade(f"the file of rows is {job['state']}: {job['why'] or 'no reason given'}")
    return job


def download(client: CoordinatorClient, where: str, file: BinaryIO) -> None:
    """All bytes of a finished file. A download that breaks off is continued as long as it gets on;
    then it raises ``Unreachable``.
    """
    at, etag = 0, ""
    while True:
        before, headers = at, {"Accept-Encoding": "identity"}
        if at:
            headers |= {"Range": f"bytes={at}-", "If-Range": etag}
        try:
            with client.streamed("GET", where, headers=headers) as answer:
                if at and "content-range" not in answer.headers:
                    raise DownloadCorrupt("another file is there than the one that was begun")
                etag = answer.headers.get("etag", "")
                for chunk in answer.chunks:
                    file.write(chunk)
                    at += len(chunk)
            return
        except Unreachable:
            if at == before or not etag:
                raise
