"""Who asks, and how much they may: API keys, images a minute and a day."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from fastapi import Request
from limits import RateLimitItemPerDay, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter
from starlette.concurrency import run_in_threadpool

from ctm.safety import ApiKeys, KeyInfo, Policy
from ctm.serve.errors import ApiError

__all__ = ["Counts", "Gate", "Over"]

REPORTS = 30  # a minute
_CLOCK_SET = 5.0  # seconds by which a clock that runs does not differ from one call to the next


def _offset() -> float:
    """The clock against the time that the machine has run."""
    return time.time() - time.monotonic()


@dataclass(frozen=True)
class Over:
    """A limit that does not let images through. most: images in the time named by words; wait: seconds until they fit, None where
    they never do."""

    words: str
    most: int
    wait: float | None


class Counts:
    """Counts what each key asks for, in this process's memory. They begin anew with the process, and where the clock is set: else
    a clock that was set back would keep everyone out until it has caught up."""

    def __init__(self) -> None:
        self._storage = storage = MemoryStorage()
        self._minutes, self._days = MovingWindowRateLimiter(storage), FixedWindowRateLimiter(storage)
        self._lock = threading.Lock()
        self._offset = _offset()

    def _watch_clock(self) -> None:
        """Begin anew where the clock was set by more than a few seconds since the last call."""
        before, self._offset = self._offset, _offset()
        if abs(self._offset - before) > _CLOCK_SET:
            self._storage.reset()

    def take(self, who: str, per_minute: int, per_day: int, images: int) -> Over | None:
        """Count images, unless they are over a limit: then nothing is counted."""
        minute, day = RateLimitItemPerMinute(per_minute), RateLimitItemPerDay(per_day)
        limits = ((self._minutes, minute, "minute", per_minute), (self._days, day, "day", per_day))
        with self._lock:
            self._watch_clock()
            for limiter, item, words, most in limits:
                if images > most:
                    return Over(words, most, None)
                if not limiter.test(item, who, cost=images):
                    return Over(words, most, limiter.get_window_stats(item, who).reset_time - time.time())
            for limiter, item, _, _ in limits:
                limiter.hit(item, who, cost=images)
        return None

    def take_report(self, who: str) -> bool:
        """Count a report; False where it is over the limit."""
        with self._lock:
            self._watch_clock()
        return bool(self._minutes.hit(RateLimitItemPerMinute(REPORTS, namespace="reports"), who))


class Gate:
    """Finds the key of a request and counts its images.

    required: whether a request needs a key; without, all requests together have the policy's limits for anonymous use. counts:
    where images are counted, None for this process's memory."""

    def __init__(self, policy: Policy, keys: ApiKeys, *, required: bool, counts: Counts | None = None) -> None:
        self.policy, self.required = policy, required
        self._keys = keys
        self._counts = counts or Counts()

    async def key_of(self, request: Request) -> KeyInfo | None:
        """The key of a request, None where none is needed. Raises ApiError 401 for a key that is missing, unknown or revoked."""
        if not self.required:
            return None
        kind, _, text = request.headers.get("authorization", "").partition(" ")
        if kind.casefold() != "bearer" or not text.strip():
            raise _unauthorised("this service needs an API key: send the header Authorization: Bearer KEY")
        found = await run_in_threadpool(self._keys.find, text.strip())
        if found is None:
            raise _unauthorised("the API key is unknown or revoked: ask who runs this service for one")
        return found

    def charge(self, key: KeyInfo | None, images: int) -> None:
        """Count images that are asked for. Raises ApiError 429, with the time after which they fit, or with none where they never
        do."""
        rate = self.policy.rate_of(key)
        over = self._counts.take(_who(key), rate.per_minute, rate.per_day, images)
        if over is None:
            return
        if over.wait is None:
            words = f"this key may ask for {over.most} images a {over.words}, and {images} are more"
            raise ApiError(400, words, "rate_too_small")
        words = f"{images} more images are over the limit of {over.most} a {over.words}: ask again later"
        raise ApiError(429, words, "rate_limit_exceeded", retry_after=over.wait)

    def charge_report(self, key: KeyInfo | None) -> None:
        """Count a report. Raises ApiError 429 for more than 30 a minute."""
        if not self._counts.take_report(_who(key)):
            raise ApiError(429, f"at most {REPORTS} reports a minute are taken", "rate_limit_exceeded", retry_after=60)


def _who(key: KeyInfo | None) -> str:
    return "anonymous" if key is None else key.id


def _unauthorised(words: str) -> ApiError:
    return ApiError(401, words, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
