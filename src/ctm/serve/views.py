"""The routes that make nothing: models, a picture by its id, reports, health, metrics."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.convertors import Convertor, register_url_convertor

from ctm.foreign.text import plain
from ctm.models.guided import droppable, takes_guidance
from ctm.models.protocol import can_jump
from ctm.safety import KeyInfo
from ctm.serve.bodies import ReportBody, read_json
from ctm.serve.document import answers, json_body
from ctm.serve.errors import ApiError, bad_request
from ctm.serve.plans import SAMPLERS
from ctm.serve.service import Served, Service

__all__ = ["add_views"]

_TEXT = "text/plain; version=0.0.4; charset=utf-8"


class _PictureId(Convertor[str]):
    """A picture's id in a path, and nothing else: 32 hexadecimal digits."""

    regex = "[0-9a-f]{32}"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("picture", _PictureId())


def add_views(app: FastAPI, service: Service) -> None:
    """Add the routes to the application."""
    _add_models(app, service)
    _add_pictures(app, service)
    _add_health(app, service)


def _add_models(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", responses=answers(401))
    async def list_models(request: Request) -> JSONResponse:
        """The models, with what they take."""
        await service.gate.key_of(request)
        return JSONResponse({"object": "list", "data": [_about(served) for served in service.models.values()]})

    @app.get("/v1/models/{model}", responses=answers(401, 404))
    async def get_model(request: Request, model: str) -> JSONResponse:
        """One model."""
        await service.gate.key_of(request)
        return JSONResponse(_about(service.model(model)))


def _about(served: Served) -> dict[str, Any]:
    model = served.model
    samplers = SAMPLERS if can_jump(model) else SAMPLERS[2:]
    about = {"id": served.name, "object": "model", "created": 0, "owned_by": "ctm", "digest": served.digest}
    about |= {"size": served.size, "classes": model.num_classes, "class_names": list(model.class_names)}
    fields = {
        name: list(shape) for name, shape in model.conditioner.fields.items() if name not in model.conditioner.always
    }
    about |= {"conditions": fields, "samplers": list(samplers), "shape": list(model.shape)}
    about |= {"sigma_min": model.sigma_min, "sigma_max": model.sigma_max}
    return {**about, "guidance": takes_guidance(model) or droppable(model) != ()}


def _add_pictures(app: FastAPI, service: Service) -> None:
    picture = {
        "description": "The picture",
        "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
    }

    @app.get("/v1/images/{id:picture}", response_class=Response, responses={200: picture, **answers(401, 404, 503)})
    async def get_image(request: Request, id: str) -> Response:
        """A picture that may leave, to the key that asked for it."""
        key = await service.gate.key_of(request)
        return Response(await run_in_threadpool(_png, service, id, key), media_type="image/png")

    made = {"description": "The report is kept", "content": {"application/json": {"schema": {"type": "object"}}}}

    @app.post(
        "/v1/reports",
        status_code=201,
        openapi_extra=json_body(ReportBody),
        responses={201: made, **answers(400, 401, 404, 408, 413, 415, 429, 503)},
    )
    async def report(request: Request) -> JSONResponse:
        """Tell the moderators what is wrong with a picture."""
        key = await service.gate.key_of(request)
        body = await read_json(request, ReportBody)
        await run_in_threadpool(service.gate.charge_report, key)
        id = await run_in_threadpool(_report, service, body, key)
        return JSONResponse({"id": id, "picture": body.picture}, 201)


def _png(service: Service, id: str, key: KeyInfo | None) -> bytes:
    """The bytes of a picture. Raises ApiError 404 where there is none, it may not leave, or it is another key's."""
    try:
        found = service.store.picture(id)
    except ValueError:
        raise _no_picture(id) from None
    mine = key is None or key.role == "moderator" or found.key_id == key.id
    if not (mine and found.may_leave and found.png is not None):
        raise _no_picture(id)
    return found.png


def _report(service: Service, body: ReportBody, key: KeyInfo | None) -> str:
    try:
        service.store.picture(body.picture)
    except ValueError:
        raise _no_picture(body.picture) from None
    with bad_request("words"):
        return service.store.report(body.picture, body.words, None if key is None else key.id)


def _no_picture(id: str) -> ApiError:
    return ApiError(404, f"there is no picture {plain(id)!r} that may be shown to you", "picture_not_found")


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", responses=answers())
    async def healthz() -> JSONResponse:
        """Whether the process answers."""
        return JSONResponse({"status": "ok"})

    @app.get("/readyz", responses=answers(503))
    async def readyz() -> JSONResponse:
        """Whether requests can be taken now."""
        await run_in_threadpool(service.check)
        return JSONResponse({"status": "ready", "models": list(service.models)})

    text = {"description": "All meters", "content": {"text/plain": {"schema": {"type": "string"}}}}

    @app.get("/metrics", response_class=Response, responses={200: text, **answers(401)})
    async def metrics(request: Request) -> Response:
        """Prometheus' text format."""
        await service.gate.key_of(request)
        return Response(service.meters.text(), headers={"Content-Type": _TEXT})
