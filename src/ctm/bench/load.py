"""Clients that ask a service for images again and again, in a process of their own: `python -m ctm.bench.load URL CLIENTS SECONDS
BODY`. It prints JSON: the seconds of each request that was answered, and the number of each other status."""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from urllib.parse import urlsplit

__all__ = ["main"]


def main(url: str, clients: int, seconds: float, body: str) -> None:
    """Run the clients and print what they met."""
    answered: list[float] = []
    others: dict[str, int] = {}
    end = time.monotonic() + seconds
    threads = [threading.Thread(target=_client, args=(url, end, body, answered, others)) for _ in range(clients)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"seconds": time.monotonic() - started, "answered": answered, "others": others}))


def _client(url: str, end: float, body: str, answered: list[float], others: dict[str, int]) -> None:
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=120)
    while time.monotonic() < end:
        started = time.perf_counter()
        connection.request("POST", f"{place.path}/images/generations", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        if answer.status == 200:
            answered.append(time.perf_counter() - started)
        else:
            others[str(answer.status)] = others.get(str(answer.status), 0) + 1
            time.sleep(0.05)
    connection.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4])
