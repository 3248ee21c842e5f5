"""Counts and times requests by their route."""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ctm.serve.metrics import Meters

__all__ = ["Timed"]


class Timed:
    """An ASGI application around another one, which tells the meters of each request."""

    def __init__(self, app: ASGIApp, *, meters: Meters) -> None:
        self._app, self._meters = app, meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, started = "499", time.perf_counter()  # where no answer was sent

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, answer)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._meters.requests.labels(route, status).inc()
            self._meters.request_seconds.labels(route).observe(time.perf_counter() - started)
