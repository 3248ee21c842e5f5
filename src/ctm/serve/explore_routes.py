"""The routes under /v1/ctm. Their pictures go the same way as all: admitted, made, screened, claimed, kept, then answered."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from torch import Tensor

from ctm.conditions import Condition
from ctm.likelihood import Estimate
from ctm.pictures import to_uint8
from ctm.safety import KeyInfo, Refused
from ctm.serve.answering import Gone, answer, unless_gone
from ctm.serve.bodies import Asked, read_form, read_json
from ctm.serve.density import bits_of
from ctm.serve.document import answers, form_body, image_answer, json_body
from ctm.serve.errors import bad_request
from ctm.serve.explore import compare, interpolate, path, stroke
from ctm.serve.explore_bodies import CompareBody, InterpolateBody, LikelihoodBody, PathBody, StrokeBody
from ctm.serve.receiving import Receiver, only
from ctm.serve.service import Served, Service
from ctm.serve.uploads import for_model
from ctm.serve.work import admitted, given_condition, seed_of

__all__ = ["add_explore", "likelihood_of"]

_ERRORS = (400, 401, 403, 404, 408, 413, 415, 429, 503, 504)
_BITS = {
    "description": "Bits per dimension",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["bits_per_dim", "standard_error", "evaluations", "model"],
                "properties": {
                    "bits_per_dim": {"type": "number"},
                    "standard_error": {"type": ["number", "null"]},
                    "evaluations": {"type": "integer"},
                    "model": {"type": "string"},
                    "seed": {"type": "integer"},
                },
            }
        }
    },
}


def add_explore(app: FastAPI, service: Service, receiver: Receiver) -> None:
    """Add the routes to the application."""
    _add_from_noise(app, service)
    _add_from_pictures(app, service, receiver)
    _add_likelihood(app, service, receiver)


def _add_from_noise(app: FastAPI, service: Service) -> None:
    responses: dict[int | str, dict[str, Any]] = {**image_answer(stream=False), **answers(*_ERRORS)}

    @app.post("/v1/ctm/compare", openapi_extra=json_body(CompareBody), responses=responses)
    async def compare_variants(request: Request) -> Response:
        """Make one image for each variant, all from the same noise: other models, numbers of steps, values of γ."""
        key = await service.gate.key_of(request)
        body = await read_json(request, CompareBody)
        models, label = await run_in_threadpool(_admitted_variants, service, body, key)
        return await answer(service, compare(service, models, body, label, key), key, request, body)

    @app.post("/v1/ctm/path", openapi_extra=json_body(PathBody), responses=responses)
    async def show_path(request: Request) -> Response:
        """Make an image and show the state after each of its jumps; one with noise in it is scaled to the data's deviation."""
        key = await service.gate.key_of(request)
        body = await read_json(request, PathBody)
        asked: dict[str, Any] = {"conditions": tuple(body.condition or ()), "guidance": body.guidance}
        served, label = await run_in_threadpool(admitted, service, body, key, **asked)
        return await answer(service, path(service, served, body, label, key), key, request, body)


def _admitted_variants(service: Service, body: CompareBody, key: KeyInfo | None) -> tuple[list[Served], int | None]:
    """The model of each variant and the class, of a request that the policy allows for each of its models."""
    if body.num > service.policy.max_images:
        words = f"a request may ask for at most {service.policy.max_images} images, got {body.num}: ask for fewer"
        raise Refused(words, "too_many_images")
    models = [service.model(variant.model) for variant in body.variants]
    label, scales = None, [variant.guidance for variant in body.variants if variant.guidance is not None]
    guidance = min(scales, default=None)
    for name in dict.fromkeys(served.name for served in models):
        count = sum(served.name == name for served in models)
        common = body.model_dump(include={"prompt", "size", "response_format"})
        ask = Asked(model=name, n=count, **common)
        _, label = admitted(service, ask, key, conditions=tuple(body.condition or ()), guidance=guidance)
    return models, label


def _add_from_pictures(app: FastAPI, service: Service, receiver: Receiver) -> None:
    largest = service.settings.largest
    responses: dict[int | str, dict[str, Any]] = {**image_answer(stream=False), **answers(*_ERRORS)}

    @app.post("/v1/ctm/stroke", openapi_extra=form_body(StrokeBody), responses=responses)
    async def stroke_to_image(request: Request) -> Response:
        """Lay noise over a picture and remove it by jumps: strokes become a picture."""
        key = await service.gate.key_of(request)
        body, files = await read_form(request, StrokeBody, largest)
        only(files, "image")
        served, label = await run_in_threadpool(
            admitted, service, body, key, upload=True, conditions=tuple(body.condition or ())
        )
        async with receiver.turn():
            work = await asyncio.to_thread(stroke, service, served, body, label, await receiver.needed(files, key))
        return await answer(service, work, key, request, body)

    @app.post("/v1/ctm/interpolate", openapi_extra=form_body(InterpolateBody), responses=responses)
    async def interpolate_pictures(request: Request) -> Response:
        """Make the pictures on the way from one to another, with both ends."""
        key = await service.gate.key_of(request)
        body, files = await read_form(request, InterpolateBody, largest)
        only(files, "first", "second")
        served, label = await run_in_threadpool(
            admitted, service, body, key, upload=True, conditions=tuple(body.condition or ())
        )
        with bad_request("n"):
            if body.num < 2:
                raise ValueError(f"an interpolation has its two ends: ask for at least 2 pictures, got {body.num}")
        condition = given_condition(served.model, body, label, 1)
        ends = []
        for name in ("first", "second"):
            async with receiver.turn():
                ends.append(await _reduced(receiver, files, key, served, name))
        work = interpolate(service, served, body, condition, ends[0], ends[1])
        return await answer(service, work, key, request, body)


def _add_likelihood(app: FastAPI, service: Service, receiver: Receiver) -> None:
    largest = service.settings.largest

    @app.post(
        "/v1/ctm/likelihood",
        openapi_extra=form_body(LikelihoodBody),
        responses={200: _BITS, **answers(*_ERRORS)},
    )
    async def likelihood(request: Request) -> Response:
        """How likely a picture is under a model: bits per dimension, fewer for a likelier one."""
        key = await service.gate.key_of(request)
        body, files = await read_form(request, LikelihoodBody, largest)
        only(files, "image")
        served, label = await run_in_threadpool(
            admitted, service, body, key, upload=True, conditions=tuple(body.condition or ())
        )
        condition = given_condition(served.model, body, label, 1)
        async with receiver.turn():
            image = await _reduced(receiver, files, key, served)
        seed = seed_of(body)
        try:
            found = await unless_gone(request, likelihood_of(service, served, condition, image, seed))
        except Gone:
            return Response(status_code=499)  # nobody reads it
        bits, error = float(found.value[0]), float(found.standard_error[0])
        about = {"bits_per_dim": bits, "standard_error": error, "evaluations": found.evaluations}
        return JSONResponse({**about, "model": served.name, "seed": seed})


async def _reduced(
    receiver: Receiver, files: dict[str, bytes], key: KeyInfo | None, served: Served, name: str = "image"
) -> Tensor:
    """The picture in a file (C, H, W) in the model's shape. Raises ApiError as `Receiver.needed`."""
    picture = await receiver.needed(files, key, name)
    with bad_request(name, "invalid_image"):
        return await asyncio.to_thread(for_model, picture, served.model)


async def likelihood_of(service: Service, served: Served, condition: Condition, image: Tensor, seed: int) -> Estimate:
    """The estimate for an image (C, H, W) under the condition of one sample, made in a thread. Giving it up ends it at the
    network's next evaluation. It takes a row of the queue."""
    pixels = to_uint8(image[None])[0].permute(2, 0, 1)
    gone, give_back = threading.Event(), served.scheduler.take_rows(1)
    end = time.monotonic() + service.settings.deadline

    def work() -> Estimate:
        try:
            left = end - time.monotonic()  # the time that it waited for a thread counts
            return bits_of(served.model, pixels, condition, seed=seed, deadline=left, gone=gone.is_set)
        finally:
            give_back()

    future = service.slow.submit(work)
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        gone.set()
        if future.cancelled():
            give_back()
        raise
