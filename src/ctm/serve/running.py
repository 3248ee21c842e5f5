"""A service in a process: its socket, its server, its end."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

import uvicorn

from ctm.serve.app import create_app
from ctm.serve.connections import HEADER_BYTES, Connection
from ctm.serve.guards import LOOPBACK_HOSTS, is_loopback
from ctm.serve.service import Service

__all__ = ["address_of", "allowed_hosts", "bind", "check_address", "run"]

_IDLE = 30  # seconds that an idle connection is kept
_CONNECTIONS = 1000
_END = 15  # seconds beside the deadline, for answers to be written


def check_address(host: str, keys: bool) -> None:
    """Raises ValueError where anyone on the network could use a service without a key."""
    if not keys and not is_loopback(host):
        raise ValueError(
            f"--host {host} is reached from other machines, and this service has no API keys: make one by ctm moderate keys add, "
            "or leave --host out"
        )


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. port 0 takes a free one. Raises ValueError where the address cannot be taken."""
    if not 0 <= port <= 65535:
        raise ValueError(f"--port must be in 0 … 65535, got {port}")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        made = socket.socket(family, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(256)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(
            f"--host {host} --port {port} cannot be taken ({reason}): give another port, or another host"
        ) from error
    return made


def address_of(bound: socket.socket) -> str:
    """The URL of the API at a socket, as this machine reaches it: of a socket on all addresses, the loopback one."""
    host, port = bound.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


def allowed_hosts(host: str, keys: bool, names: Sequence[str] = ()) -> list[str] | None:
    """Names under which the service answers: where it asks for no key, only this machine's own and `names`, so that no page of
    another site reaches it by a name that it lets point here. None: any."""
    return None if keys else [*LOOPBACK_HOSTS, host, *names]


def run(service: Service, bound: socket.socket, hosts: Sequence[str] | None) -> None:
    """Serve until SIGTERM or SIGINT. Then no more requests are taken, and what runs is finished."""
    options: dict[str, Any] = {
        "log_level": "warning",
        "access_log": False,  # it would hold addresses of pictures
        "server_header": False,
        "http": Connection,
        "h11_max_incomplete_event_size": HEADER_BYTES,
        "date_header": False,
        "timeout_keep_alive": _IDLE,
        "limit_concurrency": _CONNECTIONS,
        "timeout_graceful_shutdown": int(service.settings.deadline) + _END,
    }
    server = uvicorn.Server(uvicorn.Config(create_app(service, hosts=hosts), **options))
    server.run(sockets=[bound])
