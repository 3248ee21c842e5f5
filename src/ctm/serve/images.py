"""The routes that make images: generations, edits, variations."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from ctm.safety import KeyInfo
from ctm.serve.answering import answer, events
from ctm.serve.bodies import EditBody, GenerationBody, VariationBody, read_form, read_json
from ctm.serve.document import answers, form_body, image_answer, json_body
from ctm.serve.errors import ApiError
from ctm.serve.receiving import Receiver, only
from ctm.serve.service import Service
from ctm.serve.work import Work, admitted, edit, generate, vary

__all__ = ["add_images"]

_ERRORS = (400, 401, 403, 404, 408, 413, 415, 429, 503, 504)


def add_images(app: FastAPI, service: Service, receiver: Receiver) -> None:
    """Add the routes to the application."""
    _add_generations(app, service)
    _add_edits(app, service, receiver)
    _add_variations(app, service, receiver)


def _add_generations(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/images/generations",
        openapi_extra=json_body(GenerationBody),
        responses={**image_answer(stream=True), **answers(*_ERRORS)},
    )
    async def create_images(request: Request) -> Response:
        """Make images of a class, or of what the model draws itself."""
        key = await service.gate.key_of(request)
        body = await read_json(request, GenerationBody)
        asked: dict[str, Any] = {"conditions": tuple(body.condition or ()), "guidance": body.guidance}
        served, label = await run_in_threadpool(admitted, service, body, key, **asked)
        work = generate(service, served, body, label, key)
        return await _answered(service, work, key, request, body, "image_generation")


def _add_edits(app: FastAPI, service: Service, receiver: Receiver) -> None:
    @app.post(
        "/v1/images/edits",
        openapi_extra=form_body(EditBody),
        responses={**image_answer(stream=True), **answers(*_ERRORS)},
    )
    async def edit_image(request: Request) -> Response:
        """Fill the transparent part of a mask, or of the picture itself; the rest is kept."""
        key = await service.gate.key_of(request)
        body, files = await read_form(request, EditBody, service.settings.largest)
        only(files, "image", "mask")
        served, label = await run_in_threadpool(
            admitted, service, body, key, upload=True, conditions=tuple(body.condition or ())
        )

        async def received() -> Work:
            image, mask = await receiver.needed(files, key), await receiver.decoded(files, "mask")
            return await asyncio.to_thread(edit, service, served, body, label, image, mask)

        async with receiver.turn():
            work = await received()
        return await _answered(service, work, key, request, body, "image_edit")


def _add_variations(app: FastAPI, service: Service, receiver: Receiver) -> None:
    @app.post(
        "/v1/images/variations",
        openapi_extra=form_body(VariationBody),
        responses={**image_answer(stream=False), **answers(*_ERRORS)},
    )
    async def vary_image(request: Request) -> Response:
        """Vary a picture by the model's own flow."""
        key = await service.gate.key_of(request)
        body, files = await read_form(request, VariationBody, service.settings.largest)
        only(files, "image")
        served, label = await run_in_threadpool(
            admitted, service, body, key, upload=True, conditions=tuple(body.condition or ())
        )
        async with receiver.turn():
            work = await asyncio.to_thread(vary, service, served, body, label, await receiver.needed(files, key))
        return await answer(service, work, key, request, body)


async def _answered(
    service: Service, work: Work, key: KeyInfo | None, request: Request, body: GenerationBody | EditBody, kind: str
) -> Response:
    """The images in one body, or as events."""
    if body.stream:
        return events(service, work, key, body, kind)
    if body.partial_images:
        raise ApiError(
            400, "partial_images belong to a stream: give stream=true", "invalid_value", param="partial_images"
        )
    return await answer(service, work, key, request, body)
