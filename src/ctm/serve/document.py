"""The OpenAPI document: the bodies of requests, and every answer that can come."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from ctm.serve.bodies import EditBody, GenerationBody, ReportBody, VariationBody
from ctm.serve.explore_bodies import CompareBody, InterpolateBody, LikelihoodBody, PathBody, StrokeBody
from ctm.serve.moderation_bodies import AnswerBody, ReasonBody

__all__ = ["add_document", "answers", "form_body", "image_answer", "json_body"]

_WORDS = {
    400: "A mistake in the request",
    401: "The API key is missing, unknown or revoked",
    403: "The policy, the filter or a moderator says no",
    404: "There is no such thing here",
    405: "The method is not allowed here",
    408: "The body did not come in time",
    413: "The body is too large",
    415: "The body has the wrong content type",
    421: "The service does not answer under this name",
    429: "The queue is full, or the key's limit is reached; Retry-After says when to ask again",
    500: "A fault of the service",
    503: "The service stops, or its database cannot be written",
    504: "The request was not done at its deadline",
}
_ANY = (400, 403, 405, 413, 421, 500)  # of every route: what the guard and the application itself answer
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
                "pictures": {"type": "array", "items": {"type": "object"}},
            },
        }
    },
}
_IMAGE = {
    "type": "object",
    "required": ["id", "index", "label", "b64_json", "url"],
    "properties": {
        "id": {"type": "string"},
        "index": {"type": "integer"},
        "label": {"type": ["integer", "null"]},
        "b64_json": {"type": ["string", "null"]},
        "url": {"type": ["string", "null"]},
        "claim": {"type": "object", "description": "how it was made, as the picture itself says"},
    },
}
_IMAGES = {
    "type": "object",
    "required": ["created", "data", "model", "seed"],
    "properties": {
        "created": {"type": "integer"},
        "data": {"type": "array", "items": {"$ref": "#/components/schemas/Image"}},
        "model": {"type": "string"},
        "seed": {"type": "integer"},
        "withheld": {"type": "array", "items": {"type": "object"}},
    },
}
_EVENT = {  # each of the events
    "type": "object",
    "required": ["event", "data"],
    "properties": {"event": {"type": "string"}, "data": {"type": "string", "contentMediaType": "application/json"}},
}
_SCHEMAS = {"Error": _ERROR, "Image": _IMAGE, "Images": _IMAGES}
_FILE = {"type": "string", "format": "binary"}
_FILES: dict[type[BaseModel], tuple[str, ...]] = {
    EditBody: ("image", "mask"),
    VariationBody: ("image",),
    StrokeBody: ("image",),
    InterpolateBody: ("first", "second"),
    LikelihoodBody: ("image",),
}
_NEEDED: dict[type[BaseModel], list[str]] = {InterpolateBody: ["first", "second"]}
_JSON: tuple[type[BaseModel], ...] = (GenerationBody, ReportBody, CompareBody, PathBody, ReasonBody, AnswerBody)


def answers(*codes: int) -> dict[int | str, dict[str, Any]]:
    """The errors that a route can answer, beside those of every route."""
    found: dict[int | str, dict[str, Any]] = {}
    for code in sorted({*codes, *_ANY}):
        content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
        found[code] = {"description": _WORDS[code], "content": content}
        if code == 429:
            found[code]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
    return found


def image_answer(*, stream: bool) -> dict[int | str, dict[str, Any]]:
    """The answer with images."""
    content: dict[str, Any] = {"application/json": {"schema": {"$ref": "#/components/schemas/Images"}}}
    if stream:
        content["text/event-stream"] = {"schema": _EVENT}
    return {200: {"description": "The images that may leave", "content": content}}


def json_body(form: type[BaseModel]) -> dict[str, Any]:
    """The body of a request as JSON."""
    schema = {"$ref": f"#/components/schemas/{form.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def form_body(form: type[BaseModel]) -> dict[str, Any]:
    """The body of a request as a multipart form with its files."""
    schema = {"$ref": f"#/components/schemas/{form.__name__}"}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def add_document(app: FastAPI, *, keys: bool) -> None:
    """Give the application its document. keys: whether requests need an API key."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        document = made()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas.update(_SCHEMAS)
        for form in (*_JSON, *_FILES):
            schemas[form.__name__] = _schema(form)
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for name, path in document["paths"].items():
            for operation in path.values():
                needed = name.startswith("/v1") or name == "/metrics" if keys else name.startswith("/v1/moderation")
                operation["security"] = [{"key": []}] if needed else []
        app.openapi_schema = document
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _schema(form: type[BaseModel]) -> dict[str, Any]:
    schema = form.model_json_schema(ref_template="#/components/schemas/{model}")
    files = _FILES.get(form, ())
    if files:  # a form has texts and files, and no null
        properties = {name: _without_null(field) for name, field in schema["properties"].items()}
        schema["properties"] = {**dict.fromkeys(files, _FILE), **properties}
        schema["required"] = _NEEDED.get(form, ["image"])
    return schema


def _without_null(field: dict[str, Any]) -> dict[str, Any]:
    kinds = [kind for kind in field.get("anyOf", ()) if kind.get("type") != "null"]
    if len(kinds) != 1:
        return {name: value for name, value in field.items() if name != "default" or value is not None}
    rest = {name: value for name, value in field.items() if name not in ("anyOf", "default")}
    return {**rest, **kinds[0]}
