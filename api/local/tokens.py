"""The tokens in the folder: the administrator's and the workers'."""

from __future__ import annotations

import asyncio

from sqlalchemy import select

from api import audit, auth, tokens
from api.config import Secrets
from api.db.engine import Database
from api.db.models import Token
from api.local.folder import Folder


def keep_tokens(folder: Folder, secrets: Secrets) -> str:
    """Make sure that the administrator's token in the folder is good; the workers' token."""

    async def made() -> str:
        database = Database(secrets.database_url, pool_size=2)
        try:
            for scope in ("admin", "worker"):
                name = f"{scope}.token"
                if await _good(database, folder.read(name), secrets.pepper):
                    continue
                async with database.write() as session:
                    wanted = tokens.NewToken.model_validate({"scope": scope, "label": "up"})
                    new = await tokens.make(
                        session, database, audit.CONSOLE, secrets.pepper, wanted
                    )
                folder.keep(name, new.token)
        finally:
            await database.close()
        return folder.read("worker.token")

    return asyncio.run(made())


async def _good(database: Database, token: str, pepper: bytes) -> bool:
    """Would the coordinator take this token?"""
    if not token:
        return False
    async with database.read() as session:
        row = await session.scalar(select(Token).where(Token.mac == auth.mac_of(token, pepper)))
        now = await database.now(session)
    if row is None or row.revoked_at is not None:
        return False
    return row.expires_at is None or row.expires_at > now
