"""States of a service for tests, and pictures to put into them."""

from __future__ import annotations

from pathlib import Path

from ctm.safety import Picture, State, Verdict
from ctm.safety.pictures import new_id


def picture(decision: str = "pass", content: bytes = b"a picture", **claim: object) -> Picture:
    about = {"model": "m", "model_digest": "abc", "seed": 1, **claim}
    return Picture(new_id(), content, about, Verdict(decision, "a test", {"open_nsfw": {"nsfw": 0.125}}), "key1")


def filled(folder: Path, count: int = 6) -> State:
    """A state whose record has `count` entries of served pictures."""
    state = State.open(folder)
    for number in range(count):
        state.store.serve([picture(content=f"picture {number}".encode(), nonce=f"{number:04x}")])
    return state
