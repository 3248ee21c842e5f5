"""kill -9 under load: what was acknowledged is in the record, which is whole, and no picture left of which it does not know."""

import base64
import hashlib
import threading
import time
from pathlib import Path

import httpx2
import numpy as np
import pytest

from ctm.safety import State, verify
from ctm.safety.head import read_head

from .server import Server


def ask(url, stop, got):
    """Send requests until the service is gone; keep (id, SHA-256) of every picture that came."""
    with httpx2.Client(base_url=url, timeout=20) as client:
        while not stop.is_set():
            try:
                answer = client.post("/images/generations", json={"n": 3})
                got += [
                    (one["id"], hashlib.sha256(base64.b64decode(one["b64_json"])).hexdigest())
                    for one in answer.json()["data"]
                ]
            except httpx2.HTTPError:
                return


def kill_under_load(place: Path, times: int) -> None:
    got, random = [], np.random.default_rng(0)
    for _ in range(times):
        before = len(got)
        server, stop = Server(place / "state"), threading.Event()
        clients = [threading.Thread(target=ask, args=(server.url, stop, got)) for _ in range(4)]
        for client in clients:
            client.start()
        while len(got) == before:
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.3))
        server.process.kill()
        stop.set()
        server.process.wait(10)
        for client in clients:
            client.join()
        server.stop()
    assert len(got) >= times * 3
    state = State.open(place / "state", place / "policy.yaml")
    public = state.store.record.signer.public
    findings = verify(state.store, public, read_head(place / "state" / "head.json"))
    assert findings.whole, findings.problems
    known = {one.id: one for one in state.store.listed("served")}
    for id, digest in got:
        assert known[id].sha256 == digest
        assert hashlib.sha256(state.store.picture(id).png).hexdigest() == digest
    state.store.close()


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_by_a_kill(tmp_path):
    kill_under_load(tmp_path, 2)


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_by_many_kills(tmp_path):
    kill_under_load(tmp_path, 20)
