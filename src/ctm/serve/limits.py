"""Who asks, and how much they may: API keys, images a minute and a day."""

from __future__ import annotations

import time

from fastapi import Request
from limits import RateLimitItemPerDay, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter
from starlette.concurrency import run_in_threadpool

from ctm.safety import ApiKeys, KeyInfo, Policy
from ctm.serve.errors import ApiError

__all__ = ["Gate"]

_REPORTS = 30  # a minute


class Gate:
    """Finds the key of a request and counts its images.

    required: whether a request needs a key; without, all requests together have the policy's limits for anonymous use. The counts
    begin anew with the service."""

    def __init__(self, policy: Policy, keys: ApiKeys, *, required: bool) -> None:
        self.policy, self.required = policy, required
        self._keys = keys
        storage = MemoryStorage()
        self._minutes, self._days = MovingWindowRateLimiter(storage), FixedWindowRateLimiter(storage)

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
        who = "anonymous" if key is None else key.id
        minute, day = RateLimitItemPerMinute(rate.per_minute), RateLimitItemPerDay(rate.per_day)
        limits = ((self._minutes, minute, "minute", rate.per_minute), (self._days, day, "day", rate.per_day))
        for limiter, item, words, most in limits:
            if images > most:
                raise ApiError(
                    400, f"this key may ask for {most} images a {words}, and {images} are more", "rate_too_small"
                )
            if not limiter.test(item, who, cost=images):
                wait = limiter.get_window_stats(item, who).reset_time - time.time()
                words = f"{images} more images are over the limit of {most} a {words}: ask again later"
                raise ApiError(429, words, "rate_limit_exceeded", retry_after=wait)
        for limiter, item, _, _ in limits:
            limiter.hit(item, who, cost=images)

    def charge_report(self, key: KeyInfo | None) -> None:
        """Count a report. Raises ApiError 429 for more than 30 a minute."""
        item, who = RateLimitItemPerMinute(_REPORTS, namespace="reports"), "anonymous" if key is None else key.id
        if not self._minutes.hit(item, who):
            raise ApiError(429, f"at most {_REPORTS} reports a minute are taken", "rate_limit_exceeded", retry_after=60)


def _unauthorised(words: str) -> ApiError:
    return ApiError(401, words, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
