"""The work of the requests under /v1/ctm: one noise under several models, the path of jumps, strokes, interpolation."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ctm import editing
from ctm.conditions import Condition, labels_of, repeat
from ctm.models.protocol import can_jump
from ctm.noise import karras_grid
from ctm.requests import Steps
from ctm.safety import KeyInfo
from ctm.sampling.marking import Marks
from ctm.serve.errors import ApiError, bad_request
from ctm.serve.explore_bodies import CompareBody, InterpolateBody, PathBody, StrokeBody
from ctm.serve.nonces import nonces_of
from ctm.serve.path import Leg, followed, visible
from ctm.serve.plans import Method, Part, choose, generation, joinable, later
from ctm.serve.service import Served, Service
from ctm.serve.through import submit_function
from ctm.serve.tickets import CancelledError
from ctm.serve.uploads import Upload, for_model
from ctm.serve.work import Seen, Work, claimed, condition_of, given_condition, said_of_all, seed_of

__all__ = ["Told", "compare", "interpolate", "path", "stroke", "together"]

_STROKE_LEVEL, _STROKE_STEPS = 1.0, 2


@dataclass(frozen=True)
class Told(Work):
    """Images of which each has facts of its own, which its claim says. facts: filled when the images are there."""

    facts: list[dict[str, Any]] = field(default_factory=list)

    def claims(self, preview: int | None = None) -> list[dict[str, Any]]:
        """What is said of each image."""
        return [{**claim, **fact} for claim, fact in zip(super().claims(preview), self.facts, strict=True)]


def together(futures: Sequence[Future[Tensor]]) -> Future[Tensor]:
    """The future of all results, one after the other. The first error is its error; cancelling it cancels all."""
    whole, lock, left = Future[Tensor](), threading.Lock(), [len(futures)]

    def ended(one: Future[Tensor]) -> None:
        with lock:
            left[0] -= 1
            last = left[0] == 0
        failed = one.cancelled() or one.exception() is not None
        if failed:
            for other in futures:
                other.cancel()
        if last and whole.set_running_or_notify_cancel():
            errors = [CancelledError() if each.cancelled() else each.exception() for each in futures]
            found = sorted(
                (error for error in errors if error is not None), key=lambda e: isinstance(e, CancelledError)
            )
            if found:
                whole.set_exception(found[0])
            else:
                whole.set_result(torch.cat([each.result() for each in futures]))

    def given_up(one: Future[Tensor]) -> None:
        if one.cancelled():
            for other in futures:
                other.cancel()

    whole.add_done_callback(given_up)
    for each in futures:
        each.add_done_callback(ended)
    return whole


def _about(method: Method, kind: str) -> dict[str, Any]:
    about = {
        "sampler": method.sampler,
        "steps": method.steps,
        "gamma": method.gamma or 0.0,
        "guidance": method.guidance,
    }
    return {**about, "grid": method.levels.tolist(), "kind": kind}


def compare(
    service: Service, models: Sequence[Served], body: CompareBody, label: int | None, key: KeyInfo | None
) -> Work:
    """The work of POST /v1/ctm/compare: one image for each variant, all from the same noise and the same mark. models: of each
    variant. Raises ApiError."""
    first, seed = models[0], seed_of(body)
    shapes = {served.name: tuple(served.model.shape) for served in models}
    if len(set(shapes.values())) > 1:
        said = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ApiError(
            400, f"one noise fits models of one shape, and these have {said}", "invalid_value", param="variants"
        )
    (nonce,) = nonces_of(service.watermark, None if key is None else key.id, seed, 1)
    prepared, facts, labels = [], [], []
    for served, variant in zip(models, body.variants, strict=True):
        asked: dict[str, Any] = variant.model_dump(exclude={"model"})
        with bad_request("variants"):
            method = choose(served.model, **asked, most_steps=service.settings.most_steps)
        condition = condition_of(served.model, body, label, 1, seed)
        known = labels_of(condition)
        labels.append(None if known is None else int(known[0]))
        prepared.append((served, method, condition))
        about: dict[str, Any] = {"model": served.name, "digest": served.digest, "model_digest": served.digest}
        claim = claimed(condition, 1)
        about |= {"index": 0, "nonce": nonce.hex(), "condition": None if claim is None else claim[0]}
        facts.append({**about, **_about(method, "generation")})

    def start(previews: int, seen: Seen) -> Future[Tensor]:
        futures: list[Future[Tensor]] = []
        try:
            for served, method, condition in prepared:
                marks = Marks.of((service.watermark, [nonce]), 1)
                plan = joinable(served.model, method, Part(1, seed, condition, marks), served.scheduler.device)
                futures.append(served.scheduler.submit(plan, 1, service.settings.deadline).future)
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        return together(futures)

    return Told(first, len(facts), seed, {}, start, labels, facts=facts)


def path(service: Service, served: Served, body: PathBody, label: int | None, key: KeyInfo | None) -> Work:
    """The work of POST /v1/ctm/path: the states after each jump, then the guesses. Raises ApiError."""
    model, seed = served.model, seed_of(body)
    with bad_request():
        if not can_jump(model):
            raise ValueError(f"{served.name} only denoises, and a path is made of jumps: ask another model")
        asked: dict[str, Any] = body.model_dump(include={"sampler", "steps", "gamma", "guidance"})
        method = choose(model, **asked, most_steps=service.settings.most_steps)
        if method.sampler not in ("gamma", "consistency"):
            raise ValueError(
                f"a path is made of jumps, and {method.sampler} asks the denoiser: use gamma or consistency"
            )
    condition = condition_of(model, body, label, 1, seed)
    nonces = nonces_of(service.watermark, None if key is None else key.id, seed, 1)
    facts: list[dict[str, Any]] = []

    def start(previews: int, seen: Seen) -> Future[Tensor]:
        legs: list[Leg] = []
        marks = Marks.of((service.watermark, nonces), 1)
        make = partial(generation, model, method, [Part(1, seed, condition, marks)])
        plan = followed(later(make), legs)
        frames = _frames(plan, legs, method.guidance, model.sigma_data, body.guesses, facts, nonces[0].hex())
        return served.scheduler.submit(frames, 1, service.settings.deadline).future

    known, said = labels_of(condition), claimed(condition, 1)
    labels = None if known is None else [int(known[0])] * body.num
    conditions = None if said is None else said * body.num
    return Told(served, body.num, seed, _about(method, "path"), start, labels, conditions, facts=facts)


def _frames(
    plan: Steps,
    legs: list[Leg],
    guidance: float | None,
    sigma_data: float,
    guesses: bool,
    facts: list[dict[str, Any]],
    nonce: str,
) -> Steps:
    """The plan, which returns what is seen of its states, and of its guesses. Only the last state is the marked image."""
    image = yield from plan
    states = [visible(_guided(leg.state, guidance), leg.s, sigma_data) for leg in legs[:-1]] + [image]
    kinds = [("state", states)] + ([("guess", [_guided(leg.guess, guidance) for leg in legs])] if guesses else [])
    for kind, pictures in kinds:
        for step, (leg, _) in enumerate(zip(legs, pictures, strict=True)):
            last = kind == "state" and step == len(legs) - 1
            about = {
                "index": 0,
                "shows": kind,
                "step": step,
                "from": float(f"{leg.t:.6g}"),
                "to": float(f"{leg.s:.6g}"),
            }
            facts.append({**about, "nonce": nonce if last else None})
    return torch.cat([picture for _, pictures in kinds for picture in pictures])


def _guided(pair: Tensor, scale: float | None) -> Tensor:
    """One row as it is; of two, with the condition and without, their combination under classifier-free guidance."""
    if len(pair) == 1 or scale is None:
        return pair[:1]
    conditional, unconditional = pair.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def stroke(service: Service, served: Served, body: StrokeBody, label: int | None, image: Upload) -> Work:
    """The work of POST /v1/ctm/stroke (SDEdit, arXiv 2108.01073). Raises ApiError."""
    model, num, seed = served.model, body.num, seed_of(body)
    sigma, steps = body.sigma or _STROKE_LEVEL, body.steps or _STROKE_STEPS
    if steps > service.settings.most_steps:
        words = f"steps must be at most {service.settings.most_steps} here, got {steps}"
        raise ApiError(400, words, "invalid_value", param="steps")
    condition = given_condition(model, body, label, num)
    with bad_request():
        if not can_jump(model):
            raise ValueError(
                f"{served.name} only denoises, and stroke to image needs a model that jumps: ask another model"
            )
        whole = for_model(image, model)[None].expand(num, *model.shape)
        asked: dict[str, Any] = {"steps": steps, "gamma_share": body.gamma or 0.0, "condition": condition, "seed": seed}
        plan = editing.stroking(model, whole, sigma, **asked)

    def start(previews: int, seen: Seen) -> Future[Tensor]:
        return served.scheduler.submit(plan, num, service.settings.deadline).future

    grid = karras_grid(steps, model.sigma_min, sigma).tolist()
    about = {
        "sampler": "gamma",
        "steps": steps,
        "gamma": body.gamma or 0.0,
        "sigma": sigma,
        "grid": grid,
        "kind": "stroke",
    }
    known = None if label is None else [label] * num
    return Work(served, num, seed, about, start, known, claimed(condition, num))


def interpolate(
    service: Service, served: Served, body: InterpolateBody, condition: Condition, first: Tensor, second: Tensor
) -> Work:
    """The work of POST /v1/ctm/interpolate: from one picture (C, H, W) to the other along the flow, on the noise's sphere.
    condition: of one sample."""
    num = body.num
    both = repeat(served.model.conditioner.check(condition, first[None]), 2)

    def start(previews: int, seen: Seen) -> Future[Tensor]:
        def between(model: Any) -> Tensor:
            return editing.interpolate(model, first, second, num, condition=both)

        return submit_function(served.scheduler, service.threads, between, num, service.settings.deadline)

    grid = [float(served.model.sigma_max), float(served.model.sigma_min)]
    about = {"sampler": "flow", "steps": 1, "gamma": 0.0, "grid": grid, "kind": "interpolation"}
    return Work(served, num, seed_of(body), about, start, *said_of_all(condition, num))
