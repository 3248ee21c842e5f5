"""The only way by which a picture leaves: screened, claimed, signed, kept, and then given out."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ctm.safety import Picture, Screen, Store, Verdict
from ctm.safety.pictures import new_id
from ctm.serve.batching import Batcher
from ctm.serve.metrics import Meters

__all__ = ["Outbox", "Outcome", "Sign", "as_png"]

Claim = dict[str, Any]
Sign = Callable[[bytes, Claim], bytes]
_SIGNERS = 2  # threads; most of a signature is outside of Python's lock


@dataclass(frozen=True)
class Outcome:
    """What became of one picture. png: its bytes where it may leave, else None."""

    id: str
    decision: str
    reason: str
    png: bytes | None


class Outbox:
    """Screens, signs and keeps pictures, those of several requests together.

    sign(png, claim): the PNG with its text chunk and its manifest. A picture is kept before `deliver` returns it, so that nothing
    leaves of which the record does not know."""

    def __init__(self, store: Store, screen: Screen, sign: Sign, meters: Meters) -> None:
        self._screen, self._sign, self._meters = screen, sign, meters
        self._screening: Batcher[np.ndarray, Verdict] = Batcher(screen.images, "screen")
        self._keeping: Batcher[Picture, str] = Batcher(store.serve, "record", most=128, common=(OSError,))
        self._signing = ThreadPoolExecutor(_SIGNERS, "ctm-sign")

    async def deliver(self, pixels: np.ndarray, claims: Sequence[Claim], key_id: str | None) -> list[Outcome]:
        """What becomes of pictures uint8 (N, H, W, C), C = 1 or 3, with a claim each, in their order. Raises OSError
        where they cannot be kept: then none may leave."""
        with self._meters.stage("filter"):
            seen = [image if image.shape[2] == 3 else image.repeat(3, axis=2) for image in pixels]
            verdicts = await asyncio.wrap_future(self._screening.submit(seen))
        for verdict in verdicts:
            self._meters.pictures.labels(verdict.decision).inc()
        with self._meters.stage("signing"):
            futures = [
                asyncio.wrap_future(self._signing.submit(self._signed, image, claim, verdict, key_id))
                for image, claim, verdict in zip(pixels, claims, verdicts, strict=True)
            ]
            pictures = await asyncio.gather(*futures)
        with self._meters.stage("database"):
            await asyncio.wrap_future(self._keeping.submit(pictures))
        return [
            Outcome(one.id, one.verdict.decision, one.verdict.reason, one.png if one.state == "served" else None)
            for one in pictures
        ]

    async def screened(self, upload: np.ndarray) -> Verdict:
        """The verdict on an upload, uint8 (H, W, 3)."""
        return (await asyncio.to_thread(self._screen.images, [upload], True))[0]

    def stop(self) -> None:
        """Finish what is in here, and take no more."""
        self._screening.stop()
        self._signing.shutdown()
        self._keeping.stop()

    def _signed(self, image: np.ndarray, claim: Claim, verdict: Verdict, key_id: str | None) -> Picture:
        """The picture as it is kept. One that is blocked will never leave, and is not signed."""
        id, png = new_id(), as_png(image)
        claim = {**claim, "record": id}
        return Picture(id, png if verdict.decision == "block" else self._sign(png, claim), claim, verdict, key_id)


def as_png(image: np.ndarray) -> bytes:
    """uint8 (H, W, C), C = 1 or 3, as PNG."""
    file = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(file, "png")
    return file.getvalue()
