"""Admission: whether a request may be computed at all, decided by the policy before anything is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from ctm.foreign.text import plain

if TYPE_CHECKING:
    from ctm.safety.policy import Policy, Rate

__all__ = ["LOCAL", "Ask", "KeyInfo", "Refused", "Role", "admit", "unknown_names"]

Role = Literal["user", "moderator"]


class Refused(ValueError):
    """The policy forbids a request. The message is the sentence for its sender; code: the kind of refusal, for programs:
    class_not_allowed, condition_not_allowed, too_many_images or upload_not_allowed."""

    def __init__(self, sentence: str, code: str) -> None:
        super().__init__(sentence)
        self.code = code


@dataclass(frozen=True)
class KeyInfo:
    """Who asks, without the key itself. rate: limits of this key alone; None takes the policy's for its role."""

    id: str
    name: str
    role: Role
    rate: Rate | None = None
    created: datetime | None = None
    revoked: datetime | None = None


LOCAL = KeyInfo("local", "the command line", "moderator")  # it holds the state's files, so it may what moderators may


@dataclass(frozen=True)
class Ask:
    """What a request asks for.

    labels: the classes asked for; −1 or an empty sequence for no class. class_names: of the model's classes, in order, empty if
    unknown. classes: number of the model's classes. conditions: names of the fields that the request gives. upload: whether
    it brings a picture of its own. guidance: the scale of classifier-free guidance, the smallest where there are several; None
    without. drawn: whether labels were drawn because nobody asked for classes."""

    model: str
    num: int = 1
    labels: Sequence[int] = ()
    classes: int = 0
    class_names: Sequence[str] = ()
    conditions: Sequence[str] = ()
    upload: bool = False
    key: KeyInfo | None = None
    guidance: float | None = None
    drawn: bool = False


def admit(policy: Policy, ask: Ask) -> None:
    """Return if the policy allows the request. Raises Refused otherwise."""
    if ask.num > policy.max_images:
        raise Refused(
            f"a request may ask for at most {policy.max_images} images, got {ask.num}: ask for fewer", "too_many_images"
        )
    _check_upload(policy, ask)
    _check_classes(policy, ask)
    for name in ask.conditions:
        if not policy.conditions.allows([name]):
            raise Refused(
                f"the policy does not allow the condition {plain(name)!r}: leave it out", "condition_not_allowed"
            )


def _check_upload(policy: Policy, ask: Ask) -> None:
    role = None if ask.key is None else ask.key.role
    allowed = {"nobody": False, "moderators": role == "moderator", "keys": role is not None, "everyone": True}
    if ask.upload and not allowed[policy.uploads]:
        raise Refused(f"the policy allows uploads to {policy.uploads} only", "upload_not_allowed")


def _check_classes(policy: Policy, ask: Ask) -> None:
    """Every class asked for must be allowed. Without a class the model may draw any, so then all must be. Guidance below 1 leads
    away from the class that is asked for (0: it is not looked at), so it is as none."""
    rule = policy.classes
    for label in sorted(set(ask.labels) - {-1}):
        if not rule.allows(_names_of(label, ask)):
            shown = plain(" ".join(dict.fromkeys(str(name) for name in reversed(_names_of(label, ask)))))
            advice = ", which was drawn for a sample: name classes by --labels" if ask.drawn else ": ask for another"
            raise Refused(f"the policy does not allow the class {shown}{advice}", "class_not_allowed")
    away = ask.guidance is not None and not ask.guidance >= 1
    without = not ask.labels or -1 in ask.labels
    if not (without or away) or rule.is_open:
        return
    known = max(ask.classes, len(ask.class_names))
    if known and all(rule.allows(_names_of(label, ask)) for label in range(known)):
        return
    if known == 0 and rule.allowed is None:
        return  # a model without classes has none that is blocked
    if not without:
        words = f"with guidance below 1, {plain(ask.model)} may draw a class that the policy does not allow: give at least 1"
        raise Refused(words, "class_not_allowed")
    raise Refused(
        f"without a class, {plain(ask.model)} may draw one that the policy does not allow: ask for a class that it allows",
        "class_not_allowed",
    )


def _names_of(label: int, ask: Ask) -> list[int | str]:
    named = ask.class_names[label : label + 1] if 0 <= label < len(ask.class_names) else ()
    return [label, *named]


def unknown_names(policy: Policy, class_names: Sequence[str], classes: int) -> list[str]:
    """Names and numbers of classes in the policy that fit no class of any model served (`class_names` and the largest `classes`
    of all of them): they have no effect, which a service says when it starts."""
    known = {name.casefold() for name in class_names}
    listed = [*(policy.classes.allowed or ()), *policy.classes.blocked]
    return [
        str(each) for each in listed if (each >= classes if isinstance(each, int) else each.casefold() not in known)
    ]
