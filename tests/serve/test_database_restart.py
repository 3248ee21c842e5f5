"""The database under a service goes away and comes back. Needs Debian's `postgresql`; elsewhere these tests are not collected."""

import base64
import hashlib
import threading
import time
from collections import Counter
from pathlib import Path

import httpx2
import pytest

from ctm.safety import State, verify
from ctm.safety.head import read_head

from ..postgresql import IS_THERE, server, start, stop
from .server import Server


class Load:
    """A client that asks until `end`. got: (id, SHA-256) of each picture; answers: how often each status came."""

    def __init__(self, url):
        self.got, self.answers, self._end = [], Counter(), threading.Event()
        self._thread = threading.Thread(target=self._ask, args=(url,))
        self._thread.start()

    def _ask(self, url):
        with httpx2.Client(base_url=url, timeout=60) as client:
            while not self._end.is_set():
                answer = client.post("/images/generations", json={"n": 2})
                self.answers[answer.status_code] += 1
                for one in answer.json().get("data", []):
                    self.got.append((one["id"], hashlib.sha256(base64.b64decode(one["b64_json"])).hexdigest()))

    def end(self):
        self._end.set()
        self._thread.join(60)
        assert not self._thread.is_alive()


def wait_for(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


if IS_THERE:

    @pytest.mark.slow
    def test_a_database_that_is_started_again_is_used_again(tmp_path):
        """Between requests a restart goes unnoticed. While the database is away requests get 503, and nothing else fails."""
        with server() as url:
            folder = Path(url.rpartition("host=")[2])
            running = Server(tmp_path / "state", CTM_DATABASE=url.replace("+psycopg", ""))
            try:
                root = running.url.removesuffix("/v1")
                assert running.generate(n=1).status_code == 200
                for _ in range(2):
                    stop(folder)
                    start(folder)
                    assert running.generate(n=1).status_code == 200  # the first request after it already
                    assert running.client.get(f"{root}/readyz").status_code == 200
                loads = [Load(running.url) for _ in range(4)]
                wait_for(lambda: sum(len(load.got) for load in loads) > 40)
                stop(folder)
                wait_for(lambda: all(load.answers[503] for load in loads))
                assert running.client.get(f"{root}/readyz").status_code == 503
                assert running.client.get(f"{root}/healthz").status_code == 200
                start(folder)
                before = sum(len(load.got) for load in loads)
                wait_for(lambda: sum(len(load.got) for load in loads) > before + 40)
                for load in loads:
                    load.end()
                assert set().union(*(load.answers for load in loads)) == {200, 503}
                running.process.terminate()
                assert running.process.wait(60) == 143
            finally:
                running.stop()
            state = State.open(tmp_path / "state", url=url)
            findings = verify(state.store, state.store.record.signer.public, read_head(state.folder / "head.json"))
            assert findings.whole, findings.problems
            for load in loads:
                for id, digest in load.got:
                    assert state.store.picture(id).sha256 == digest
            state.store.close()
