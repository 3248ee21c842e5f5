"""The routes of moderators: held pictures, decisions, reports. Each needs the key of a moderator, also where others need none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from ctm.foreign.text import plain
from ctm.safety import KeyInfo
from ctm.safety.moderation import Kept
from ctm.serve.bodies import read_json
from ctm.serve.document import answers, json_body
from ctm.serve.errors import ApiError, bad_request
from ctm.serve.limits import Gate
from ctm.serve.moderation_bodies import AnswerBody, ReasonBody
from ctm.serve.service import Service

__all__ = ["add_moderation"]

_DECISION = (400, 401, 403, 404, 408, 413, 415, 503)
_PNG = {"description": "The picture", "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
_LIST = {"description": "A list", "content": {"application/json": {"schema": {"type": "object"}}}}
_DONE = {"description": "It is decided, and the record keeps it", "content": _LIST["content"]}


def add_moderation(app: FastAPI, service: Service) -> None:
    """Add the routes to the application."""
    gate = Gate(service.policy, service.state.keys, required=True)

    async def moderator(request: Request) -> KeyInfo:
        """Who decides. Raises ApiError 401 without a key, 403 for the key of a user."""
        key = await gate.key_of(request)
        if key is None or key.role != "moderator":
            raise ApiError(403, "this needs the key of a moderator, and this key is a user's", "not_a_moderator")
        return key

    _add_lists(app, service, moderator)
    _add_decisions(app, service, moderator)


def _add_lists(app: FastAPI, service: Service, moderator: Callable[[Request], Any]) -> None:
    @app.get("/v1/moderation/held", responses={200: _LIST, **answers(401, 503)})
    async def list_held(request: Request) -> JSONResponse:
        """Pictures that wait for a decision, oldest first."""
        await moderator(request)
        held = await run_in_threadpool(service.store.held)
        return JSONResponse({"object": "list", "data": [_about(one) for one in held]})

    @app.get("/v1/moderation/reports", responses={200: _LIST, **answers(401, 503)})
    async def list_reports(request: Request) -> JSONResponse:
        """Open reports, oldest first."""
        await moderator(request)
        reports = await run_in_threadpool(service.store.reports)
        return JSONResponse({"object": "list", "data": [asdict(one) for one in reports]})

    @app.get("/v1/moderation/pictures/{id}", responses={200: _LIST, **answers(401, 404, 503)})
    async def show_picture(request: Request, id: str) -> JSONResponse:
        """What is known of a picture, with all that the record tells of it."""
        await moderator(request)
        found = await run_in_threadpool(_picture, service, id)
        return JSONResponse({**_about(found), "history": await run_in_threadpool(service.store.history, id)})

    @app.get(
        "/v1/moderation/pictures/{id}/png", response_class=Response, responses={200: _PNG, **answers(401, 404, 503)}
    )
    async def show_png(request: Request, id: str) -> Response:
        """The bytes of a picture, whether it may leave or not."""
        await moderator(request)
        png = (await run_in_threadpool(_picture, service, id)).png
        if png is None:
            raise ApiError(
                404, f"the bytes of the picture {plain(id)} are not kept, or are deleted", "picture_not_kept"
            )
        return Response(png, media_type="image/png")


def _add_decisions(app: FastAPI, service: Service, moderator: Callable[[Request], Any]) -> None:
    def decide(name: str, decision: Callable[..., None], words: str) -> None:
        async def route(request: Request, id: str) -> JSONResponse:
            key = await moderator(request)
            body = await read_json(request, ReasonBody)
            await run_in_threadpool(_picture, service, id)
            with bad_request("reason", "not_decided"):
                await run_in_threadpool(decision, id, _name(key), body.reason)
            return JSONResponse(_about(await run_in_threadpool(_picture, service, id)))

        options: dict[str, Any] = {
            "openapi_extra": json_body(ReasonBody),
            "description": words,
            "name": f"{name}_picture",
        }
        responses = {200: _DONE, **answers(*_DECISION)}
        app.post(f"/v1/moderation/pictures/{{id}}/{name}", responses=responses, **options)(route)

    decide("release", service.store.release, "Let a held or rejected picture leave.")
    decide("reject", service.store.reject, "Keep a held picture back, or take down one that was served or released.")

    @app.post(
        "/v1/moderation/reports/{id}/close",
        openapi_extra=json_body(AnswerBody),
        responses={200: _DONE, **answers(*_DECISION)},
    )
    async def close_report(request: Request, id: str) -> JSONResponse:
        """Close a report with an answer."""
        key = await moderator(request)
        body = await read_json(request, AnswerBody)
        with bad_request("id", "not_decided"):
            await run_in_threadpool(service.store.close_report, id, _name(key), body.answer)
        return JSONResponse({"id": id, "closed": True})


def _picture(service: Service, id: str) -> Kept:
    try:
        return service.store.picture(id)
    except ValueError as error:
        raise ApiError(404, f"there is no picture {plain(id)!r}", "picture_not_found") from error


def _about(picture: Kept) -> dict[str, Any]:
    """A picture without its bytes."""
    about = {name: getattr(picture, name) for name in ("id", "state", "sha256", "claim", "verdict", "key_id")}
    return {**about, "made": picture.made, "changed": picture.changed, "reason": picture.reason}


def _name(key: KeyInfo) -> str:
    """Who decided, as the record names a person with a key."""
    return f"{key.name} (key {key.id})"
