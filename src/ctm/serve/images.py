"""The routes that make images: generations, edits, variations."""

from __future__ import annotations

import asyncio
import hashlib

from fastapi import FastAPI, Request
from fastapi.responses import Response

from ctm.safety import KeyInfo
from ctm.serve.answering import answer, events
from ctm.serve.bodies import EditBody, GenerationBody, VariationBody, read_form, read_json
from ctm.serve.document import answers, form_body, image_answer, json_body
from ctm.serve.errors import ApiError, bad_request
from ctm.serve.service import Service
from ctm.serve.uploads import Upload, read_upload, screened_pixels
from ctm.serve.work import Work, admitted, edit, generate, vary

__all__ = ["add_images"]

_DECODERS = 2  # uploads that are decoded at once
_ERRORS = (400, 401, 403, 404, 408, 413, 415, 429, 503, 504)


def add_images(app: FastAPI, service: Service) -> None:
    """Add the routes to the application."""
    _add_generations(app, service)
    uploads = _Uploads(service)
    _add_edits(app, service, uploads)
    _add_variations(app, service, uploads)


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
        served, label = admitted(service, body, key, conditions=tuple(body.condition or ()))
        work = generate(service, served, body, label)
        return await _answered(service, work, key, request, body, "image_generation")


def _add_edits(app: FastAPI, service: Service, uploads: _Uploads) -> None:
    @app.post(
        "/v1/images/edits",
        openapi_extra=form_body(EditBody),
        responses={**image_answer(stream=True), **answers(*_ERRORS)},
    )
    async def edit_image(request: Request) -> Response:
        """Fill the transparent part of a mask, or of the picture itself; the rest is kept."""
        key = await service.gate.key_of(request)
        body, files = await read_form(request, EditBody, service.settings.largest)
        _only(files, "image", "mask")
        served, label = admitted(service, body, key, upload=True)
        image, mask = await uploads.image(files, key), await uploads.read(files, "mask")
        work = edit(service, served, body, label, image, mask)
        return await _answered(service, work, key, request, body, "image_edit")


def _add_variations(app: FastAPI, service: Service, uploads: _Uploads) -> None:
    @app.post(
        "/v1/images/variations",
        openapi_extra=form_body(VariationBody),
        responses={**image_answer(stream=False), **answers(*_ERRORS)},
    )
    async def vary_image(request: Request) -> Response:
        """Vary a picture by the model's own flow."""
        key = await service.gate.key_of(request)
        body, files = await read_form(request, VariationBody, service.settings.largest)
        _only(files, "image")
        served, label = admitted(service, body, key, upload=True)
        work = vary(service, served, body, label, await uploads.image(files, key))
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


class _Uploads:
    """Reads the pictures of requests, a few at once."""

    def __init__(self, service: Service) -> None:
        self._service, self._decoding = service, asyncio.Semaphore(_DECODERS)

    async def read(self, files: dict[str, bytes], name: str) -> Upload | None:
        """The picture in a file of the form, None where there is no such file. Raises ApiError."""
        if name not in files:
            return None
        async with self._decoding:
            with bad_request(name, "invalid_image"):
                return await asyncio.to_thread(read_upload, files[name], name)

    async def image(self, files: dict[str, bytes], key: KeyInfo | None) -> Upload:
        """The picture to change, which the filter has seen. Of a mask only the transparency is used. Raises ApiError."""
        picture = await self.read(files, "image")
        if picture is None:
            raise ApiError(400, "a picture is missing: send it as the file image", "missing", param="image")
        await _screened(self._service, picture, key)
        return picture


async def _screened(service: Service, picture: Upload, key: KeyInfo | None) -> None:
    """Raises ApiError for a picture that the filter does not let pass, and the record knows of it."""
    pixels = await asyncio.to_thread(screened_pixels, picture)
    verdict = await service.outbox.screened(pixels)
    if verdict.decision == "pass":
        return
    about = {"pixels_sha256": hashlib.sha256(pixels.tobytes()).hexdigest(), "key": None if key is None else key.id}
    about |= {"decision": verdict.decision, "reason": verdict.reason}
    await asyncio.to_thread(service.store.note, "upload refused", about)
    raise ApiError(403, f"the {picture.name} was refused by the service's filter", "upload_refused", param=picture.name)


def _only(files: dict[str, bytes], *names: str) -> None:
    """Raises ApiError for a file that the request does not take."""
    for name in files:
        if name not in names:
            raise ApiError(
                400, f"this request takes the files {' and '.join(names)} only", "unknown_parameter", param="file"
            )
