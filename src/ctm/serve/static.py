"""The page: its files, with the types and the rules under which a browser runs them. Nothing in them names another host."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from ctm.serve.errors import ApiError

__all__ = ["FILES", "RULES", "router"]

PLACE = Path(__file__).with_name("page")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
FILES = {path.name: _TYPES[path.suffix] for path in sorted(PLACE.iterdir()) if path.suffix in _TYPES}
RULES = (  # of the content security policy: the page's own files, pictures made in the page, the service itself
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": RULES,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}

_METHODS = ["GET", "HEAD"]  # tools ask for the head first

router = APIRouter(include_in_schema=False)


@cache
def _content(name: str) -> bytes:
    return (PLACE / name).read_bytes()


def _file(name: str) -> Response:
    """A file of the page. The name is looked up in the list of files, so no path of a request reaches the disk."""
    if name not in FILES:
        raise ApiError(404, "the page has no such file", "not_found")
    return Response(_content(name), media_type=FILES[name], headers=_HEADERS)


@router.api_route("/", methods=_METHODS)
async def to_page(request: Request) -> Response:
    return RedirectResponse(f"{request.scope.get('root_path', '')}/page/", 307)


@router.api_route("/page", methods=_METHODS)
async def to_index(request: Request) -> Response:
    return RedirectResponse(f"{request.scope.get('root_path', '')}/page/", 307)


@router.api_route("/page/", methods=_METHODS)
async def index() -> Response:
    return _file("index.html")


@router.api_route("/favicon.ico", methods=_METHODS)
async def favicon() -> Response:
    return _file("favicon.svg")


@router.api_route("/page/{name}", methods=_METHODS)
async def file(name: str) -> Response:
    return _file(name)
