"""From a request's fields to what the network is to do: checked, admitted by the policy, counted, and then a future of images."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctm import editing
from ctm.conditions import GUIDANCE, LABELS, Condition, labels_of
from ctm.models import AnyModel
from ctm.models.protocol import can_jump
from ctm.provenance.claim import claimed
from ctm.requests import Steps
from ctm.safety import Ask, KeyInfo
from ctm.sampling.generation import class_labels, conditions_for
from ctm.sampling.marking import Marks
from ctm.serve.bodies import EditBody, GenerationBody, VariationBody
from ctm.serve.errors import ApiError, bad_request
from ctm.serve.names import label_of
from ctm.serve.nonces import nonces_of
from ctm.serve.plans import Part, choose, generation, joinable, later, watched
from ctm.serve.service import Served, Service
from ctm.serve.through import submit_function
from ctm.serve.tickets import Joinable
from ctm.serve.uploads import Upload, for_model, picture_shape, to_fill

__all__ = [
    "Seen",
    "Work",
    "admitted",
    "claimed",
    "condition_of",
    "edit",
    "generate",
    "given_condition",
    "said_of_all",
    "seed_of",
    "vary",
]

Seen = Callable[[int, Tensor], object]
_VARIATION = 0.3
_EDIT_STEPS, _EDIT_ROUNDS = 18, 2


@dataclass(frozen=True)
class Work:
    """Images that may be made.

    start(previews, seen): gives the work to the network and returns the future of images (num, *shape); seen(index, images) is
    called for previews on the way. finish: what is left to do with the images. about: what all claims say; labels, conditions (as
    a claim has them), nonces: of each image."""

    served: Served
    num: int
    seed: int
    about: dict[str, Any]
    start: Callable[[int, Seen], Future[Tensor]]
    labels: Sequence[int | None] | None = None
    conditions: list[Any] | None = None
    nonces: list[bytes] | None = None
    finish: Callable[[Tensor], Tensor] = field(default=lambda images: images)

    def claims(self, preview: int | None = None) -> list[dict[str, Any]]:
        """What is said of each image: how it was made, with which watermark."""
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        digest = self.served.digest
        common = {
            "model": self.served.name,
            "digest": digest,
            "model_digest": digest,
            "seed": self.seed,
            "created": created,
        }
        common |= self.about | ({} if preview is None else {"preview": preview})
        return [
            {
                **common,
                "index": index,
                "condition": None if self.conditions is None else self.conditions[index],
                "nonce": None if self.nonces is None or preview is not None else self.nonces[index].hex(),
            }
            for index in range(self.num)
        ]


def admitted(
    service: Service,
    body: Any,
    key: KeyInfo | None,
    *,
    upload: bool = False,
    conditions: Sequence[str] = (),
    guidance: float | None = None,
) -> tuple[Served, int | None]:
    """The model that is asked and the class of the prompt, of a request that the policy allows. Its images are counted. Raises
    ApiError and ctm.safety.Refused."""
    served = service.model(body.model)
    if body.size not in (None, "auto", served.size):
        words = f"{served.name} makes pictures of {served.size}: leave size out, or give auto"
        raise ApiError(400, words, "invalid_value", param="size")
    if body.response_format == "url" and service.policy.retention.served == 0:
        words = "this service does not keep pictures, so they have no address: leave response_format out"
        raise ApiError(400, words, "invalid_value", param="response_format")
    model = served.model
    with bad_request("prompt"):
        label = label_of(body.prompt, model.num_classes, model.class_names)
    known: dict[str, Any] = {"classes": model.num_classes, "class_names": model.class_names, "conditions": conditions}
    known["guidance"] = guidance
    labels = () if label is None else (label,)
    service.policy.admit(Ask(served.name, body.num, labels, **known, upload=upload, key=key))
    if body.num > service.settings.queue:
        words = f"a request may ask for at most {service.settings.queue} images here, got {body.num}"
        raise ApiError(400, words, "invalid_value", param="n")
    service.gate.charge(key, body.num)
    return served, label


def seed_of(body: Any) -> int:
    """The seed that is asked for, or one that is drawn."""
    return secrets.randbelow(1 << 53) if body.seed is None else int(body.seed)  # a number that every JSON reader keeps


def generate(service: Service, served: Served, body: GenerationBody, label: int | None, key: KeyInfo | None) -> Work:
    """The work of POST /v1/images/generations. Raises ApiError."""
    model, num, seed = served.model, body.num, seed_of(body)
    asked: dict[str, Any] = {
        "sampler": body.sampler,
        "steps": body.steps,
        "gamma": body.gamma,
        "guidance": body.guidance,
    }
    with bad_request():
        method = choose(model, **asked, most_steps=service.settings.most_steps)
    condition = condition_of(model, body, label, num, seed)
    nonces = nonces_of(service.watermark, None if key is None else key.id, seed, num)

    def start(previews: int, seen: Seen) -> Future[Tensor]:
        part, scheduler = Part(num, seed, condition, Marks.of((service.watermark, nonces), num)), served.scheduler
        plan: Steps | Joinable = joinable(model, method, part, scheduler.device)
        if previews:  # its plan tells what it sees, so it is its own
            plan = watched(
                later(partial(generation, model, method, [part], scheduler.device)), method.calls, previews, seen
            )
        return scheduler.submit(plan, num, service.settings.deadline).future

    about = {"sampler": method.sampler, "steps": method.steps, "gamma": method.gamma, "guidance": method.guidance}
    about |= {"gamma": method.gamma or 0.0, "grid": method.levels.tolist(), "kind": "generation"}
    labels = labels_of(condition)
    known = None if labels is None else labels.tolist()
    return Work(served, num, seed, about, start, known, claimed(condition, num), nonces)


def said_of_all(condition: Condition, num: int) -> tuple[list[int] | None, list[Any] | None]:
    """The label and the claimed condition of each of num images, which all have the condition of one sample."""
    labels, said = labels_of(condition), claimed(condition, 1)
    return None if labels is None else [int(labels[0])] * num, None if said is None else said * num


def condition_of(model: AnyModel, body: Any, label: int | None, num: int, seed: int) -> Condition:
    """The condition of all images: the class, drawn by the model where none is asked for, and the fields of the request."""
    return _with_fields(model, body, class_labels(model, num, label, seed), num, seed)


def given_condition(model: AnyModel, body: Any, label: int | None, num: int) -> Condition:
    """The condition of num images with what the request gives, and no class that it does not. Raises ApiError."""
    return _with_fields(model, body, None if label is None else torch.full((num,), label), num, 0)


def _with_fields(model: AnyModel, body: Any, labels: Tensor | None, num: int, seed: int) -> Condition:
    if not body.condition:
        return labels
    fields: dict[str, Any] = {} if labels is None else {LABELS: labels}
    with bad_request("condition"):
        for name, value in body.condition.items():
            if name == LABELS:
                raise ValueError("the class is asked for by the prompt: leave labels out of the condition")
            if name == GUIDANCE:
                raise ValueError("the guidance scale has a field of its own, guidance: leave it out of the condition")
            fields[name] = _array(name, value)
        return conditions_for(model, num, fields, seed)


def _array(name: str, value: Any) -> Tensor:
    try:
        numbers = np.asarray(value)
        if numbers.dtype.kind not in "fiub":
            raise TypeError("texts are no numbers, also where they look like some")
        with np.errstate(over="ignore"):  # what is too large is infinite, which the model's conditioner refuses
            return torch.from_numpy(numbers.astype(np.float32))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"the condition {name!r} must be a number or a regular list of numbers") from error


def edit(
    service: Service, served: Served, body: EditBody, label: int | None, image: Upload, mask: Upload | None
) -> Work:
    """The work of POST /v1/images/edits: the mask's transparent part is filled, by jumps with replacement. Raises ApiError."""
    model, num, seed = served.model, body.num, seed_of(body)
    steps, rounds = body.steps or _EDIT_STEPS, body.rounds or _EDIT_ROUNDS
    with bad_request("image", "invalid_image"):
        channels_and_side = picture_shape(model)
        if not can_jump(model):
            raise ValueError(f"{served.name} only denoises, and edits need a model that jumps: ask another model")
        known = ~to_fill(image, mask, channels_and_side[1])
        whole = for_model(image, model)
    if steps > service.settings.most_steps:
        raise ApiError(
            400,
            f"steps must be at most {service.settings.most_steps} here, got {steps}",
            "invalid_value",
            param="steps",
        )
    operator = editing.masking(known)
    y = operator.A(whole[None]).expand(num, *whole.shape)
    condition = given_condition(model, body, label, num)

    def start(previews: int, seen: Seen) -> Future[Tensor]:
        options: dict[str, Any] = {"steps": steps, "rounds": rounds, "condition": condition, "seed": seed}
        plan = later(lambda: editing.replacing(model, operator, y, **options))
        plan = watched(plan, steps * rounds, previews, seen)
        return served.scheduler.submit(plan, num, service.settings.deadline).future

    levels = editing.restoring_levels(model, steps)
    about = {
        "sampler": "restore",
        "steps": steps,
        "rounds": rounds,
        "gamma": 1.0,
        "kind": "edit",
        "grid": levels.tolist(),
    }
    known_labels = None if label is None else [label] * num
    finish = partial(_kept, operator=operator, y=y)
    return Work(served, num, seed, about, start, known_labels, claimed(condition, num), finish=finish)


def _kept(images: Tensor, operator: editing.LinearOperator, y: Tensor) -> Tensor:
    return editing.into_range(images, operator, y)


def vary(service: Service, served: Served, body: VariationBody, label: int | None, image: Upload) -> Work:
    """The work of POST /v1/images/variations: the picture becomes noise along the flow, the noise is turned, and becomes
    pictures again. Raises ApiError."""
    num, seed = body.num, seed_of(body)
    amount = _VARIATION if body.amount is None else body.amount
    condition = given_condition(served.model, body, label, 1)
    with bad_request("image", "invalid_image"):
        whole = for_model(image, served.model)

    def start(previews: int, seen: Seen) -> Future[Tensor]:
        def vary_it(model: Any) -> Tensor:
            return editing.variations(model, whole, num, amount, condition=condition, seed=seed)

        return submit_function(served.scheduler, service.threads, vary_it, num, service.settings.deadline)

    ends = [float(served.model.sigma_max), float(served.model.sigma_min)]
    about = {"sampler": "flow", "steps": 1, "gamma": 0.0, "grid": ends, "amount": amount, "kind": "variation"}
    return Work(served, num, seed, about, start, *said_of_all(condition, num))
