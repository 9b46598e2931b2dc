"""What update ingest is compared with: the least that receives a body for good.

A FastAPI route under the coordinator's uvicorn settings streams the body to a file, makes it
durable (file and folder), and commits one row in the same Postgres. No token, no lease, no check.
``python -m benchmarks.federation.bare PORT``, with ``BENCH_DATABASE_URL`` and ``BENCH_FOLDER``.
"""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

import uvicorn
from fastapi import FastAPI, Request
from sqlalchemy import BigInteger, Column, MetaData, Table, Uuid, insert
from sqlalchemy.ext.asyncio import create_async_engine

_BODIES = Table(
    "bench_bodies", MetaData(), Column("id", Uuid, primary_key=True), Column("size", BigInteger)
)


def application(database: str, folder: Path) -> FastAPI:
    engine = create_async_engine(database, pool_size=10, max_overflow=0)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with engine.begin() as connection:
            await connection.run_sync(_BODIES.metadata.create_all)
        yield
        await engine.dispose()

    app = FastAPI(lifespan=lifespan)

    @app.put("/{name}", status_code=201)
    async def put(name: uuid.UUID, request: Request) -> dict[str, int]:
        size = 0
        with (folder / str(name)).open("xb") as file:
            async for chunk in request.stream():
                size += file.write(chunk)
            await asyncio.to_thread(_durable, file, folder)
        async with engine.begin() as connection:
            await connection.execute(insert(_BODIES).values(id=name, size=size))
        return {"size": size}

    return app


def _durable(file: BinaryIO, folder: Path) -> None:
    file.flush()
    os.fsync(file.fileno())
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def main(port: int) -> None:
    database = os.environ["BENCH_DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://", 1)
    folder = Path(os.environ["BENCH_FOLDER"])
    folder.mkdir(parents=True, exist_ok=True)
    config = uvicorn.Config(
        application(database, folder), host="127.0.0.1", port=port, log_config=None,
        access_log=False, server_header=False,
    )  # fmt: skip
    uvicorn.Server(config).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
