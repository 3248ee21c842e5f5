"""A service as several processes on this machine, over one PostgreSQL: Ray Serve starts them, sends each request to one of them,
and starts another where one has died."""

from __future__ import annotations

import logging
import math
import os
import secrets
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fastapi import FastAPI

from ctm.foreign.allowed import allowed_modules
from ctm.foreign.text import plain
from ctm.serve.app import create_app
from ctm.serve.errors import ApiError
from ctm.serve.limits import Counts, Over
from ctm.serve.opening import Opening

__all__ = ["run_replicas"]

_APP = "ctm"
_END = 15  # seconds beside the deadline, for answers to be written
_MEMORY = 100_000_000  # bytes that Ray keeps for objects; the service gives it none of its pictures
_ASK = 5.0  # seconds for the counts, which take one millisecond
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on Linux too, Ray's own ports are then of this machine only
    "RAY_AUTH_MODE": "token",  # without the token of this start, Ray's ports refuse every call
}
_PROXY_SECONDS = "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"
_UNLESS_GIVEN = {
    _PROXY_SECONDS: "60",  # Ray's own 5 are too few on a busy machine
    "RAY_worker_niceness": "0",  # Ray's own 15 would let any other program go before the service
}


class SharedCounts(Counts):
    """Counts in a process that all replicas ask. Raises ApiError 503 where it does not answer."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def take(self, who: str, per_minute: int, per_day: int, images: int) -> Over | None:
        found: Over | None = self._ask(self._actor.take.remote(who, per_minute, per_day, images))
        return found

    def take_report(self, who: str) -> bool:
        return bool(self._ask(self._actor.take_report.remote(who)))

    def _ask(self, asked: Any) -> Any:
        import ray

        try:
            return ray.get(asked, timeout=_ASK)
        except ray.exceptions.RayError as error:
            raise ApiError(
                503, "the limits of keys cannot be counted now: ask again", "no_counts", retry_after=5
            ) from error


def run_replicas(opening: Opening, replicas: int, host: str, port: int, ready: Callable[[], object]) -> None:
    """Serve until SIGTERM or SIGINT; then no more requests are taken, and what runs is finished. ready: called once requests are
    taken. Raises OSError where the replicas do not start."""
    meters = tempfile.TemporaryDirectory(prefix="ctm-meters-")
    with meters, _ray() as ray:
        from ray import serve

        quiet = {"log_level": "WARNING", "enable_access_log": False}  # it would hold addresses of pictures
        counts = ray.remote(Counts).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
        try:
            serve.start(http_options={"host": host, "port": port, "keep_alive_timeout_s": 30}, logging_config=quiet)
        except ray.exceptions.RayError as error:
            raise OSError(
                f"Ray's proxy did not start within {os.environ[_PROXY_SECONDS]} seconds: free the machine of other work, or set "
                f"{_PROXY_SECONDS} to more; Ray's own logs are in /tmp/ray"
            ) from error
        deployment = _deployment(opening, SharedCounts(counts)).options(
            num_replicas=replicas,
            max_ongoing_requests=opening.settings.queue + 100,  # each replica has its own bounds, which answer 429
            graceful_shutdown_timeout_s=opening.settings.deadline + _END,
            graceful_shutdown_wait_loop_s=0.1,
            health_check_period_s=2,
            health_check_timeout_s=30,
            logging_config=quiet,
            ray_actor_options={
                "num_cpus": 0,
                "num_gpus": _gpus(opening.device, replicas),
                "runtime_env": {
                    "env_vars": {"PROMETHEUS_MULTIPROC_DIR": meters.name, "CTM_ALLOW": ",".join(allowed_modules())}
                },
            },
        )
        try:
            try:
                serve.run(deployment.bind(), name=_APP, route_prefix="/")
            except RuntimeError as error:
                raise OSError(f"the replicas do not start: {_reason()}") from error
            ready()
            while True:
                time.sleep(3600)
        finally:
            _finish(opening.settings.deadline + _END)


def _deployment(opening: Opening, counts: Counts) -> Any:
    from ray import serve

    def build() -> FastAPI:
        return create_app(opening.service(counts), hosts=opening.hosts)

    class Replica:
        """The application in a process. Ray asks after its health."""

        def check_health(self) -> None:
            if not self.app.state.service.takes:  # type: ignore[attr-defined]
                raise RuntimeError("a network of this replica takes no requests")

    return serve.deployment(name="replica")(serve.ingress(build)(Replica))


def _reason() -> str:
    """The last line of what Ray says of a deployment that failed: the error of the replica."""
    from ray import serve

    found = serve.status().applications.get(_APP)
    told = [] if found is None else [one.message for one in found.deployments.values()]
    lines = [line.strip() for line in "\n".join(told).splitlines() if line.strip()]
    return plain(lines[-1], 300) if lines else "Ray does not say why"


def _finish(seconds: float) -> None:
    """Take no more requests, and wait for what runs. The end of Ray ends the other processes."""
    from ray import serve

    serve.delete(_APP, _blocking=False)
    end = time.monotonic() + seconds
    while _APP in serve.status().applications and time.monotonic() < end:
        time.sleep(0.1)


@contextmanager
def _ray() -> Iterator[Any]:
    """Ray, started on this machine and ended with the block. Signals stay ctm's own."""
    os.environ.update(
        _ENVIRONMENT | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    )  # before Ray is imported, which reads it
    for name, value in _UNLESS_GIVEN.items():
        os.environ.setdefault(name, value)
    import ray
    from ray import serve  # noqa: F401  (it sets its logger)

    logging.getLogger("ray.serve").setLevel(logging.WARNING)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    ray.init(
        address="local",
        num_cpus=4,  # of Ray's own counting; the replicas ask for none
        object_store_memory=_MEMORY,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    for number, handler in handlers.items():
        signal.signal(number, handler)
    try:
        yield ray
    finally:
        ray.shutdown()


def _gpus(device: str, replicas: int) -> float:
    """The share of a GPU for each replica."""
    if torch.device(device).type != "cuda":
        return 0.0
    return 1 / math.ceil(replicas / torch.cuda.device_count())
