"""A picture that was made, and the states that it goes through."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from typing import Any, Literal

from ctm.safety.screening import Verdict

__all__ = ["MAY_BECOME", "STATE_OF", "Picture", "State", "new_id"]

State = Literal["served", "held", "released", "rejected", "blocked", "deleted"]
STATE_OF: dict[str, State] = {"pass": "served", "hold": "held", "block": "blocked"}
MAY_BECOME: dict[str, tuple[str, ...]] = {  # a moderator's decision -> the states in which it can be taken
    "released": ("held", "rejected"),
    "rejected": ("held", "served", "released"),
    "deleted": ("served", "held", "released", "rejected", "blocked"),
}


def new_id() -> str:
    """An id of a picture or a report: 128 random bits, as hex."""
    return secrets.token_hex(16)


@dataclass(frozen=True)
class Picture:
    """A picture that was screened. png: the bytes that leave, if it may. claim: how it was made, values of JSON; its entries
    `nonce` (hex) and `model_digest`, if there, are listed by `Store.nonces`."""

    id: str
    png: bytes = field(repr=False)
    claim: dict[str, Any]
    verdict: Verdict
    key_id: str | None = None

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes, as hex."""
        return hashlib.sha256(self.png).hexdigest()

    @property
    def state(self) -> State:
        """The state it begins in."""
        return STATE_OF[self.verdict.decision]
