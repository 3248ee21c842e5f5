"""The application: OpenAI's images interface over a service, with health, metrics and its OpenAPI document."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from ctm.serve.document import add_document
from ctm.serve.errors import add_handlers
from ctm.serve.explore_routes import add_explore
from ctm.serve.guards import Guard
from ctm.serve.images import add_images
from ctm.serve.moderation import add_moderation
from ctm.serve.receiving import Receiver
from ctm.serve.service import Service
from ctm.serve.static import router as page
from ctm.serve.timing import Timed
from ctm.serve.views import add_views
from ctm.version import __version__

__all__ = ["create_app"]

LOG = logging.getLogger("ctm.serve")
_HOUR = 3600.0


def create_app(service: Service, *, hosts: Sequence[str] | None = None, stop: bool = True) -> FastAPI:
    """The application that answers from a service.

    hosts: names under which it answers, None for any. stop: whether the service stops with the application, when what runs is
    done."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        expiring = asyncio.ensure_future(_expire(service))
        yield
        expiring.cancel()
        if stop:
            await run_in_threadpool(service.stop)

    app = FastAPI(title="ctm", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    add_handlers(app)
    receiver = Receiver(service)
    add_images(app, service, receiver)
    add_views(app, service)
    add_explore(app, service, receiver)
    add_moderation(app, service)
    app.include_router(page)
    add_document(app, keys=service.gate.required)
    app.add_middleware(Guard, largest=service.settings.largest, hosts=hosts)
    app.add_middleware(Timed, meters=service.meters)
    return app


async def _expire(service: Service) -> None:
    """Delete what the policy keeps no longer, at the start and then every hour."""
    while True:
        try:
            await run_in_threadpool(service.store.expire)
        except OSError as error:
            LOG.error("what is too old could not be deleted: %s", error)
        await asyncio.sleep(_HOUR)
