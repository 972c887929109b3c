"""`GET /`: the playground, built from clients/playground. Serves files of the package and nothing else.

The page holds no secret and needs no key; what it asks of the API does.
"""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

_TYPES = {"page.js": "text/javascript", "page.css": "text/css"}
_HEADERS = {
    # A reply is shown as text; should one ever become markup, it can load and run nothing.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def page_router() -> APIRouter:
    """The page and the two files that it loads."""
    router = APIRouter(include_in_schema=False)
    folder = files("meet_server") / "page"
    _serve(router, "/", (folder / "index.html").read_bytes(), "text/html")
    for name, kind in _TYPES.items():
        _serve(router, f"/playground/{name}", (folder / "playground" / name).read_bytes(), kind)
    return router


def _serve(router: APIRouter, path: str, content: bytes, kind: str) -> None:
    @router.api_route(path, methods=["GET", "HEAD"])
    async def serve() -> Response:
        return Response(content, media_type=kind, headers=_HEADERS)
