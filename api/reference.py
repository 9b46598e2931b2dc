"""/docs and /redoc from files that come with a wheel: they work without internet, and ask nobody.

ReDoc's script shows its maker's logo, out of a network, once it has drawn the page. Nobody is to be
told who reads the reference of a hospital's coordinator: the script is served without.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import fastapi_offline
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_SCRIPT = "redoc.standalone.js"
_LOGO = "https://cdn.redoc.ly/redoc/logo-mini.svg"
_NO_PICTURE = "data:,"  # the script leaves a picture away that cannot be shown


@cache
def _script() -> bytes:
    text = (Path(fastapi_offline.__file__).parent / "static" / _SCRIPT).read_text("utf-8")
    return text.replace(_LOGO, _NO_PICTURE).encode()


async def _redoc(_: Request) -> Response:
    return Response(_script(), media_type="text/javascript")


def keep_at_home(app: FastAPI) -> None:
    """Serve ReDoc's script without the logo, in place of the file that is mounted."""
    app.router.routes.insert(0, Route(f"/static-offline-docs/{_SCRIPT}", _redoc))
