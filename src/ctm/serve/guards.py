"""What stands before every request: where it may come from, how large it may be and how long it may take to send."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ctm.serve.errors import ApiError

__all__ = ["LOOPBACK_HOSTS", "Guard", "is_loopback"]

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")
_FULL = 32  # bodies of the largest size that are in memory at once; smaller ones as many more
_SMALL = 65_536  # bytes of a body that is taken even so
_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """An ASGI application before another one.

    largest: bytes of a body, counted while it comes; seconds: for the whole of it to come. hosts: names under which the service
    answers, None for any. A browser sends the page's origin with a request from another page, which is refused: where no key is
    asked for, any page that the user visits could else use the service. All bodies together have at most 32 times `largest`
    bytes: while they do, only those of up to 64 kB are taken."""

    def __init__(
        self, app: ASGIApp, *, largest: int, seconds: float = 30.0, hosts: Sequence[str] | None = None
    ) -> None:
        self._app, self._largest, self._seconds = app, largest, seconds
        self._bytes = 0
        self._hosts = None if hosts is None else {host.casefold() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        refusal = self._refusal(headers)
        if refusal is not None:
            await refusal.response(scope, receive, answer)
            return
        body = _Body(receive, self._largest, self._seconds, self._take)
        try:
            await self._app(scope, body, answer)
        finally:
            self._bytes -= body.count

    def _take(self, more: int, count: int) -> None:
        """Count bytes of a body that has `count` with them. Raises ApiError 429 where all bodies have too many."""
        if count > _SMALL and self._bytes + more > _FULL * self._largest:
            raise ApiError(429, "too much is being sent to the service now: ask again later", "busy", retry_after=5)
        self._bytes += more

    def _refusal(self, headers: dict[bytes, str]) -> ApiError | None:
        host = headers.get(b"host", "").casefold()
        name = host.rsplit(":", 1)[0] if host.rsplit(":", 1)[-1].isdecimal() else host
        if self._hosts is not None and name not in self._hosts:
            return ApiError(
                421, "this service does not answer under this name: use the address it was started with", "wrong_host"
            )
        origin = headers.get(b"origin", "").casefold()
        if origin and _netloc(origin) != host:
            return ApiError(403, "a page of another origin may not use this service", "wrong_origin")
        length = headers.get(b"content-length", "0")
        if not (length.isascii() and length.isdecimal()):
            return ApiError(400, "the header Content-Length is no number", "bad_length")
        if len(length) > 18 or int(length) > self._largest:
            return _too_large(self._largest)
        return None


class _Body:
    """`receive` that counts bytes and watches the time. count: bytes that came and were taken."""

    def __init__(self, receive: Receive, largest: int, seconds: float, take: Callable[[int, int], None]) -> None:
        self._receive, self._largest, self._seconds, self._take = receive, largest, seconds, take
        self._end: float | None = None
        self.count, self._whole = 0, False

    async def __call__(self) -> Message:
        if self._whole:
            return await self._receive()
        clock = asyncio.get_running_loop().time
        self._end = clock() + self._seconds if self._end is None else self._end
        try:
            message = await asyncio.wait_for(self._receive(), max(0.01, self._end - clock()))
        except asyncio.TimeoutError as error:
            raise ApiError(408, f"the request's body did not come within {self._seconds:g} s", "too_slow") from error
        more = len(message.get("body", b""))
        if self.count + more > self._largest:
            raise _too_large(self._largest)
        self._take(more, self.count + more)
        self.count += more
        self._whole = message["type"] != "http.request" or not message.get("more_body", False)
        return message


def _netloc(origin: str) -> str | None:
    """The host and port of an origin, None for what is no address."""
    try:
        return urlsplit(origin).netloc
    except ValueError:  # e.g. half of an IPv6 address
        return None


def _too_large(largest: int) -> ApiError:
    return ApiError(413, f"a request may have {largest / 1e6:g} MB: send a smaller picture", "too_large")
