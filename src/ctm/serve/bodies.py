"""The bodies of requests: their fields, types and ranges, and how they are read from JSON and from forms."""

from __future__ import annotations

import asyncio
import re
from email.message import Message
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from ctm.foreign.text import parse_json, plain
from ctm.serve.errors import ApiError, bad_request

__all__ = [
    "Asked",
    "EditBody",
    "FormAsked",
    "GenerationBody",
    "ReportBody",
    "Steps",
    "VariationBody",
    "read_form",
    "read_json",
]

Body = TypeVar("Body", bound=BaseModel)
Steps = Annotated[int, Field(ge=1, le=1_000_000)] | None  # a service takes fewer; more digits could not even be said
_SEED = (1 << 64) - 1
_FIELD = re.compile(r"([a-z_]{1,40})\[([A-Za-z][A-Za-z0-9_]{0,63})\](\[\])?")
_NUMBERS = {int: re.compile(r"-?(0|[1-9][0-9]*)"), float: re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")}
_MOST_FIELDS, _MOST_FILES = 64, 2
_MOST_NESTED = 100_000  # lists and objects of a JSON body; each costs a hundred times its bytes
_SHORT = 65_536  # bytes of a body that is read at once, beside nothing


class Asked(BaseModel):
    """What every request for images may have."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: Annotated[str, Field(max_length=200)] | None = Field(
        None, description="a name of GET /v1/models; the first where left out"
    )
    prompt: Annotated[str, Field(max_length=1000)] = Field("", description="a class by name or number; empty: none")
    n: Annotated[int, Field(ge=1, le=1024)] | None = Field(None, description="number of images")
    size: Annotated[str, Field(max_length=20)] | None = Field(None, description="WIDTHxHEIGHT of the model, or auto")
    response_format: Literal["b64_json", "url"] | None = Field(None, description="b64_json where left out")
    seed: Annotated[int, Field(ge=0, le=_SEED)] | None = Field(
        None, description="image i depends on (seed, i); drawn where left out"
    )
    output_format: Literal["png"] | None = None
    moderation: Literal["auto"] | None = None
    quality: Literal["auto"] | None = None
    background: Literal["auto", "opaque"] | None = None
    user: Annotated[str, Field(max_length=200)] | None = Field(
        None, description="taken for the client's sake, and not kept"
    )

    @property
    def num(self) -> int:
        """The number of images."""
        return 1 if self.n is None else self.n


class GenerationBody(Asked):
    """POST /v1/images/generations."""

    steps: Steps = Field(None, description="jumps, or levels of a sampler of the denoiser")
    gamma: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="of γ-sampling; 0: deterministic")
    guidance: Annotated[float, Field(ge=-100, le=100)] | None = Field(
        None, description="scale of classifier-free guidance"
    )
    sampler: Annotated[str, Field(max_length=40)] | None = Field(None, description="gamma, consistency, heun, …")
    condition: dict[str, Any] | None = Field(
        None, description="the model's fields: an array each, for all images or one for each"
    )
    stream: bool | None = Field(None, description="server-sent events with previews")
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = Field(None, description="previews of a stream")


class FormAsked(Asked):
    """What every request with pictures may have, beside them."""

    condition: dict[str, Any] | None = Field(
        None, description="the model's fields by name, as JSON text or as condition[NAME][]"
    )


class EditBody(FormAsked):
    """POST /v1/images/edits, the fields beside the files."""

    steps: Steps = Field(None, description="levels; 18 where left out")
    rounds: Annotated[int, Field(ge=1, le=16)] | None = Field(None, description="jumps at each level; 2 where left out")
    stream: bool | None = Field(None, description="server-sent events with previews")
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = Field(None, description="previews of a stream")


class VariationBody(FormAsked):
    """POST /v1/images/variations, the fields beside the file."""

    amount: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="0: the image … 1: a new one; 0.3 where left out"
    )


class ReportBody(BaseModel):
    """POST /v1/reports."""

    model_config = ConfigDict(extra="forbid")

    picture: Annotated[str, Field(min_length=1, max_length=64)] = Field(description="the picture's id")
    words: Annotated[str, Field(min_length=1, max_length=4000)] = Field(description="what is wrong with it")


async def read_json(request: Request, form: type[Body]) -> Body:
    """The body as JSON. Raises ApiError for another type, for no JSON, and for fields that are not right."""
    _check_type(request, "application/json")
    content = await request.body()
    if len(content) > _SHORT:
        return await asyncio.to_thread(_from_json, content, form)
    return _from_json(content, form)


def _from_json(content: bytes, form: type[Body]) -> Body:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ApiError(
            400, f"the body is no text in UTF-8 ({error.reason} at byte {error.start})", "invalid_json"
        ) from error
    with bad_request(code="invalid_json"):
        _check_nested(content, "the body")
        values = parse_json(text, "the body")
    return _validated(form, values, strict=True)


async def read_form(request: Request, form: type[Body], largest: int) -> tuple[Body, dict[str, bytes]]:
    """The fields of a multipart form, and the bytes of its files by name. Nothing of it goes to a disk. Raises ApiError."""
    _check_type(request, "multipart/form-data")
    parser = _FormParser(
        request.headers, request.stream(), max_files=_MOST_FILES, max_fields=_MOST_FIELDS, max_part_size=largest
    )
    parser.spool_max_size = largest + 1  # in memory: the body is smaller
    try:
        data = await parser.parse()
    except (MultiPartException, KeyError, ValueError, AttributeError) as error:
        raise ApiError(
            400, f"the form cannot be read: {plain(str(error), 200) or 'it has no boundary'}", "invalid_form"
        ) from error
    try:
        files: dict[str, bytes] = {}
        for name, value in data.multi_items():
            if not isinstance(value, UploadFile):
                continue
            name = name.removesuffix("[]")  # as a client names the files of a list
            if name in files:
                raise ApiError(400, f"give one file {plain(name)!r}, not several", "invalid_value", param=plain(name))
            files[name] = await value.read()
        return _validated(form, _parsed(_in_digits(form, _fields(data))), strict=False), files
    finally:
        await data.close()


class _FormParser(MultiPartParser):
    """A parser of forms that takes texts in UTF-8 only. Its parent reads others as Latin-1, and looks at no part's encoding."""

    def on_part_end(self) -> None:
        part = self._current_part
        for name, value in part.item_headers:
            if name == b"content-transfer-encoding" and value.strip().lower() not in (b"7bit", b"8bit", b"binary"):
                raise MultiPartException(f"the part {part.field_name!r} is encoded: send it as it is")
            if name == b"content-type" and part.file is None and not _in_utf8(value.decode("latin-1")):
                raise MultiPartException(f"the field {part.field_name!r} must be text in UTF-8")
        try:
            bytes(part.data).decode()
        except UnicodeDecodeError as error:
            raise MultiPartException(f"the field {part.field_name!r} is no text in UTF-8") from error
        super().on_part_end()


def _in_digits(form: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """The fields, whose numbers are written as JSON writes them: no blanks, no 1_0. Raises ApiError."""
    for name, value in values.items():
        known = form.model_fields.get(name)
        kind = None if known is None else _number_in(known.annotation)
        if kind is not None and isinstance(value, str) and not _NUMBERS[kind].fullmatch(value):
            words = f"{name}: must be {'a whole number' if kind is int else 'a number'} in digits, got {plain(repr(value), 60)}"
            raise ApiError(400, words, "invalid_value", param=name)
    if isinstance(values.get("condition"), dict):
        return {**values, "condition": {key: _numbers(key, text) for key, text in values["condition"].items()}}
    return values


def _numbers(name: str, text: str | list[str]) -> float | list[float]:
    """The number or numbers of one field of a condition. Raises ApiError."""
    every = text if isinstance(text, list) else [text]
    wrong = next((each for each in every if not _NUMBERS[float].fullmatch(each)), None)
    if wrong is not None:
        words = f"the condition {name!r} must be a number or a regular list of numbers, in digits, got {plain(repr(wrong), 60)}"
        raise ApiError(400, words, "invalid_value", param="condition")
    return [float(each) for each in text] if isinstance(text, list) else float(text)


def _number_in(annotation: Any) -> type[int] | type[float] | None:
    """int or float, where a field takes such a number, perhaps within bounds, or nothing."""
    for part in (annotation, *get_args(annotation)):
        kind = get_args(part)[0] if get_origin(part) is Annotated else part
        if kind is int or kind is float:
            return int if kind is int else float
    return None


def _fields(data: FormData) -> dict[str, Any]:
    """The texts of a form: a=1, and a[b]=1 or a[b][]=1 as the openai client writes mappings."""
    values: dict[str, Any] = {}
    for name, value in data.multi_items():
        if isinstance(value, UploadFile):
            continue
        match = _FIELD.fullmatch(name)
        if match is None:
            if name in values:
                raise ApiError(400, f"the field {plain(name)!r} is given twice", "invalid_value", param=plain(name))
            values[name] = value
        else:
            inner = values.setdefault(match[1], {})
            inner = inner if isinstance(inner, dict) else {}
            inner[match[2]] = [*inner.get(match[2], []), value] if match[3] else value
    return values


def _parsed(values: dict[str, Any]) -> dict[str, Any]:
    """The fields with the condition as a mapping, where it came as JSON text. Raises ApiError."""
    text = values.get("condition")
    if not isinstance(text, str):
        return values
    with bad_request("condition"):
        _check_nested(text, "the condition")
        return {**values, "condition": parse_json(text, "the condition")}


def _check_nested(text: str | bytes, name: str) -> None:
    marks: tuple[Any, Any] = ("[", "{") if isinstance(text, str) else (b"[", b"{")
    if sum(text.count(mark) for mark in marks) > _MOST_NESTED:
        raise ValueError(f"{name} has more than {_MOST_NESTED:,} lists and objects: ask for fewer images at once")


def _validated(form: type[Body], values: Any, *, strict: bool) -> Body:
    if not isinstance(values, dict):
        raise ApiError(400, "the body must be a JSON object with the fields of the request", "invalid_value")
    unknown = next((name for name in values if name not in form.model_fields), None)
    if unknown is not None:  # before there is an error for each of many
        where, known = plain(unknown, 60), ", ".join(form.model_fields)
        raise ApiError(400, f"unknown field {where!r}: this request takes {known}", "unknown_parameter", param=where)
    try:
        return form.model_validate(values, strict=strict)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = plain(".".join(str(step) for step in first["loc"][:1]), 60)
        words = f"{where}: {plain(first['msg'], 200)}, got {plain(repr(first['input']), 60)}"
        raise ApiError(400, words, "invalid_value", param=where) from None


def _check_type(request: Request, wanted: str) -> None:
    """Raises ApiError 415 for another type, for text that is not said to be UTF-8, and for a body that was compressed."""
    whole = request.headers.get("content-type", "")
    given = whole.split(";")[0].strip().casefold()
    if given != wanted:
        raise ApiError(415, f"the body must be {wanted}, got {plain(given) or 'no Content-Type'}", "wrong_content_type")
    if not _in_utf8(whole):
        raise ApiError(415, f"the body must be in UTF-8, got {plain(whole, 100)}", "wrong_content_type")
    for encoding in request.headers.getlist("content-encoding"):
        if encoding.strip().casefold() not in ("", "identity"):
            words = f"the body must be sent as it is, without Content-Encoding, got {plain(encoding, 60)}"
            raise ApiError(415, words, "wrong_content_encoding")


def _in_utf8(content_type: str) -> bool:
    """Whether a Content-Type names no charset, or UTF-8 or the ASCII within it."""
    header = Message()
    header["content-type"] = content_type.replace("\n", " ").replace("\r", " ")
    charset = header.get_param("charset", "utf-8")
    return isinstance(charset, str) and charset.strip().casefold() in ("utf-8", "utf8", "us-ascii")
