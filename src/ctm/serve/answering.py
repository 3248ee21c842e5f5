"""From work to an answer: images in one JSON body, or as server-sent events with previews.

A client that hangs up ends its work."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Awaitable
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np
import torch
from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from torch import Tensor

from ctm.pictures import to_uint8
from ctm.safety import KeyInfo
from ctm.serve.errors import ApiError, as_api_error
from ctm.serve.outbox import Outcome
from ctm.serve.service import Service
from ctm.serve.work import Work

__all__ = ["Gone", "answer", "events", "unless_gone"]

T = TypeVar("T")
_ALIVE = 1.0  # seconds between comments of a stream, by which a client that is gone is noticed


class Gone(Exception):
    """The client has hung up."""


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """What the work gives; it is cancelled where the client hangs up first."""

    async def hang_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(hang_up())
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def answer(service: Service, work: Work, key: KeyInfo | None, request: Request, body: Any) -> Response:
    """The answer of a request for images, with the images themselves or with their addresses. Raises ApiError where none may
    leave."""

    claims: list[dict[str, Any]] = []

    async def made() -> list[Outcome]:
        with service.meters.stage("network"):
            images = await _started(work, 0, lambda index, images: None)
        pixels = await _finished(work, images)
        claims.extend(work.claims())
        return await service.outbox.deliver(pixels, claims, _id(key))

    try:
        outcomes = await unless_gone(request, made())
    except Gone:
        return Response(status_code=499)  # nobody reads it
    _check_any(outcomes)
    data = [
        {**_entry(work, index, one, request, body), "claim": claims[index]}
        for index, one in enumerate(outcomes)
        if one.png is not None
    ]
    content = {"created": int(time.time()), "data": data, "model": work.served.name, "seed": work.seed}
    content |= {"output_format": "png", "size": work.served.size, **_facts(work)}
    withheld = [_withheld(one) for one in outcomes if one.png is None]
    return JSONResponse({**content, **({"withheld": withheld} if withheld else {})})


def _started(work: Work, previews: int, seen: Any) -> Awaitable[Tensor]:
    """The images as something to wait for. Giving up the waiting gives up the work."""
    future: Future[Tensor] = work.start(previews, seen)
    return asyncio.wrap_future(future)


def events(service: Service, work: Work, key: KeyInfo | None, body: Any, kind: str) -> StreamingResponse:
    """The answer as server-sent events: previews, which are screened and kept as every picture, then the images. kind:
    image_generation or image_edit."""
    return StreamingResponse(_events(service, work, key, body, kind), media_type="text/event-stream")


async def _events(service: Service, work: Work, key: KeyInfo | None, body: Any, kind: str) -> AsyncIterator[str]:
    loop, waiting = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Tensor]]()

    def seen(index: int, images: Tensor) -> None:  # in the network's thread
        loop.call_soon_threadsafe(waiting.put_nowait, (index, images.clone()))

    try:
        task = asyncio.ensure_future(_started(work, body.partial_images or 0, seen))
        try:
            with service.meters.stage("network"):
                while not task.done() or not waiting.empty():
                    preview = await _next(waiting, task)
                    if preview is None:
                        yield ": \n\n"
                        continue
                    yield await _preview(service, work, key, kind, *preview)
            images = task.result()
        finally:
            task.cancel()
        outcomes = await service.outbox.deliver(await _finished(work, images), work.claims(), _id(key))
        _check_any(outcomes)
        for index, one in enumerate(outcomes):
            if one.png is not None:
                yield _event(f"{kind}.completed", _about(work, index, one))
    except Exception as error:
        yield _event("error", as_api_error(error).content)


async def _next(waiting: asyncio.Queue[tuple[int, Tensor]], task: asyncio.Future[Tensor]) -> tuple[int, Tensor] | None:
    """The next preview; None where the images are done, or after a while."""
    getting = asyncio.ensure_future(waiting.get())
    try:
        both: list[asyncio.Future[Any]] = [getting, task]
        await asyncio.wait(both, timeout=_ALIVE, return_when=asyncio.FIRST_COMPLETED)
        return getting.result() if getting.done() else (waiting.get_nowait() if not waiting.empty() else None)
    finally:
        getting.cancel()


async def _preview(service: Service, work: Work, key: KeyInfo | None, kind: str, index: int, images: Tensor) -> str:
    """The events of a preview of each image, but for those that may not leave."""
    outcomes = await service.outbox.deliver(_pixels(images), work.claims(preview=index), _id(key))
    made = [
        _event(f"{kind}.partial_image", {**_about(work, number, one), "partial_image_index": index})
        for number, one in enumerate(outcomes)
        if one.png is not None
    ]
    return "".join(made) or ": \n\n"


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n"


def _about(work: Work, index: int, one: Outcome) -> dict[str, Any]:
    about = {"b64_json": _base64(one), "id": one.id, "index": index, "created_at": int(time.time())}
    about |= {"size": work.served.size, "output_format": "png", "quality": "auto", "background": "opaque"}
    return about | {"seed": work.seed, "label": None if work.labels is None else work.labels[index]}


async def _finished(work: Work, images: Tensor) -> np.ndarray:
    """The images as pixels, finished beside the event loop."""
    return await asyncio.to_thread(lambda: _pixels(work.finish(images)))


def _pixels(images: Tensor) -> np.ndarray:
    """Images (N, C, H, W) as uint8 (N, H, W, C). Raises ApiError for images that are no numbers."""
    if not bool(torch.isfinite(images).all()):
        raise ApiError(
            500, "the model made an image that is no numbers: ask for another seed, or less guidance", "not_finite"
        )
    return to_uint8(images.cpu()).numpy()


def _check_any(outcomes: list[Outcome]) -> None:
    """Raises ApiError where no picture may leave."""
    if any(one.png is not None for one in outcomes):
        return
    held = any(one.decision == "hold" for one in outcomes)
    pictures = [_withheld(one) for one in outcomes]
    if held:
        words = "the picture is held until a moderator has looked at it; GET /v1/images/ID gives it once it is released"
        raise ApiError(403, words, "moderation_held", facts={"pictures": pictures})
    raise ApiError(
        403, "the picture was blocked by the service's filter", "moderation_blocked", facts={"pictures": pictures}
    )


def _withheld(one: Outcome) -> dict[str, Any]:
    return {"id": one.id, "decision": one.decision}


def _entry(work: Work, index: int, one: Outcome, request: Request, body: Any) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": one.id, "index": index, "label": None if work.labels is None else work.labels[index]}
    if body.response_format == "url":
        return {**entry, "url": str(request.url_for("get_image", id=one.id)), "b64_json": None}
    return {**entry, "b64_json": _base64(one), "url": None}


def _base64(one: Outcome) -> str:
    return base64.b64encode(one.png or b"").decode()


def _facts(work: Work) -> dict[str, Any]:
    facts = {name: work.about.get(name) for name in ("sampler", "steps", "gamma", "guidance")}
    return facts if facts["sampler"] == "gamma" else {**facts, "gamma": None}


def _id(key: KeyInfo | None) -> str | None:
    return None if key is None else key.id
