"""Files of a request: decoded within bounds, and through the filters before anything is done with them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ctm.safety import KeyInfo
from ctm.serve.errors import ApiError, bad_request
from ctm.serve.service import Service
from ctm.serve.uploads import Upload, read_upload, screened_pixels

__all__ = ["Receiver", "only"]

_AT_ONCE = 2  # requests whose uploads are there in full size
_WAITING = 64  # requests that may wait for a turn


class Receiver:
    """Takes pictures out of the files of requests. A service has one, since it bounds the memory of all of them: a picture of
    100 kB may need 100 MB until it has the model's size."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._turns, self._waiting = asyncio.Semaphore(_AT_ONCE), 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Inside the block, at most one other request has its pictures in full size. None may be kept after it. Raises ApiError
        429 where 64 requests wait already."""
        if self._waiting >= _WAITING:
            words = f"{self._waiting} requests with pictures wait already: ask again later"
            raise ApiError(429, words, "queue_full", retry_after=5)
        self._waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._turns.release()

    async def decoded(self, files: dict[str, bytes], name: str) -> Upload | None:
        """The picture in the file of that name, None where there is none. Raises ApiError 400 for what is no picture."""
        content = files.get(name)
        if content is None:
            return None
        with bad_request(name, "invalid_image"):
            return await asyncio.to_thread(read_upload, content, name)

    async def needed(self, files: dict[str, bytes], key: KeyInfo | None, name: str = "image") -> Upload:
        """The picture in a file that must be there, which the filters have seen. Raises ApiError as `decoded`, 400 where it is
        missing, and 403 for one that the filters refuse, which the record keeps."""
        picture = await self.decoded(files, name)
        if picture is None:
            raise ApiError(400, f"a picture is missing: send it as the file {name}", "missing", param=name)
        pixels = await asyncio.to_thread(screened_pixels, picture)
        verdict = await self._service.outbox.screened(pixels)
        if verdict.decision == "pass":
            return picture
        digest = await asyncio.to_thread(lambda: hashlib.sha256(pixels.tobytes()).hexdigest())
        about = {"pixels_sha256": digest, "key": None if key is None else key.id}
        about |= {"decision": verdict.decision, "reason": verdict.reason}
        await asyncio.to_thread(self._service.store.note, "upload refused", about)
        raise ApiError(403, f"the {name} was refused by the service's filter", "upload_refused", param=name)


def only(files: dict[str, bytes], *names: str) -> None:
    """Raises ApiError for a file that the request does not take."""
    for name in files:
        if name not in names:
            words = f"this request takes the files {' and '.join(names)} only"
            raise ApiError(400, words, "unknown_parameter", param="file")
