"""`ctm serve --ray`: two replicas over one PostgreSQL. Under load one is killed; keys, limits and meters are as of one service.

The slow test needs Debian's `postgresql` and the extra `ray`; elsewhere it is not collected."""

import base64
import hashlib
import importlib.util
import json
import os
import signal
import threading
import time
from collections import Counter
from functools import partial
from importlib.util import find_spec

import httpx2
import psutil
import pytest

from ctm.cli import main
from ctm.commands import serve
from ctm.safety import State, verify
from ctm.safety.head import read_head
from ctm.safety.policy import Rate
from ctm.safety.record import entries

from ..postgresql import IS_THERE, server
from .server import MODEL, OPEN, Server

JSON = {"Content-Type": "application/json"}


def test_replicas_are_refused_without_ray(capsys):
    assert main(["serve", MODEL, "--replicas", "2"]) == 2
    assert "--replicas 2 needs --ray" in capsys.readouterr().err


def test_replicas_over_a_file_are_refused(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(serve, "check_installed", lambda command, ray: None)
    monkeypatch.delenv("CTM_DATABASE", raising=False)
    state = tmp_path / "state"
    assert main(["serve", MODEL, "--ray", "--replicas", "2", "--state", str(state)]) == 2
    assert "name a PostgreSQL in CTM_DATABASE" in capsys.readouterr().err
    assert main(["serve", MODEL, "--ray", "--replicas", "0", "--state", str(state)]) == 2
    assert "--replicas must be at least 1" in capsys.readouterr().err
    assert not state.exists()


def test_the_extra_that_is_missing_is_named(capsys, monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else there(name))
    assert main(["serve", MODEL, "--ray"]) == 2
    assert 'needs ray, which is not installed: pip install "ctm-torch[ray]"' in capsys.readouterr().err


class Load:
    """Clients that ask for pictures until `end`. got: (id, SHA-256) of each picture that came; failed: answers of other kinds."""

    def __init__(self, running, key, clients=4):
        self.url, self.key = running.url, key
        self.got, self.failed, self._end = [], [], threading.Event()
        self._clients = [threading.Thread(target=self._ask) for _ in range(clients)]
        for client in self._clients:
            client.start()

    def _ask(self):
        with httpx2.Client(base_url=self.url, timeout=60, headers=authorised(self.key)) as client:
            while not self._end.is_set():
                answer = client.post("/images/generations", json={"n": 2})
                if answer.status_code != 200:
                    self.failed.append((answer.status_code, answer.text))
                    continue
                for one in answer.json()["data"]:
                    self.got.append((one["id"], hashlib.sha256(base64.b64decode(one["b64_json"])).hexdigest()))

    def wait_for(self, more):
        count = len(self.got) + more
        until(lambda: len(self.got) >= count)

    def end(self):
        self._end.set()
        for client in self._clients:
            client.join(60)
            assert not client.is_alive()


def authorised(key):
    return {"Authorization": f"Bearer {key}"}


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def replicas(running):
    """The replicas' processes."""
    found = psutil.Process(running.process.pid).children(recursive=True)
    return [each for each in found if "ServeReplica" in " ".join(each.cmdline())]


def check_one_service(running, key, few):
    """Limits of a key, meters, health, bounds of bodies and events are those of one service, whichever replica answers."""
    root = running.url.removesuffix("/v1")
    assert running.client.get("/models").status_code == 401
    assert [running.client.get(root + path).status_code for path in ("/healthz", "/readyz", "/page/")] == [200] * 3
    codes = Counter(
        running.client.post("/images/generations", json={"n": 1}, headers=authorised(few)).status_code
        for _ in range(14)
    )
    assert codes == {200: 10, 429: 4}
    running.client.headers.update(authorised(key))
    for _ in range(10):
        assert running.generate(n=2).status_code == 200
    assert running.client.get(root + "/metrics").text.count("ctm_queue_rows{") == 0
    assert running.metric("ctm_call_rows_sum") == 30
    large = running.client.post("/images/generations", headers=JSON, content=(b" " * 1000000 for _ in range(20)))
    assert large.status_code == 413
    assert running.client.get(root + "/healthz", headers={"Origin": "http://example.org"}).status_code == 403


def check_events(running):
    """Events come while the picture is made, and a client that hangs up ends the work."""
    body = {"n": 1, "steps": 6, "stream": True, "partial_images": 2}
    with running.client.stream("POST", "/images/generations", json=body) as answer:
        names = [line.removeprefix("event: ") for line in answer.iter_lines() if line.startswith("event: ")]
    assert names == [f"image_generation.{name}" for name in ("partial_image", "partial_image", "completed")]
    body = {"n": 200, "steps": 128, "sampler": "heun"}
    rows = running.metric("ctm_call_rows_sum")
    with pytest.raises(httpx2.TimeoutException):
        running.client.post("/images/generations", json=body, timeout=1)
    time.sleep(2)
    after = running.metric("ctm_call_rows_sum")
    assert rows < after < rows + 200 * 255
    time.sleep(1)
    assert running.metric("ctm_call_rows_sum") == after


def check_ports(running):
    """What listens on more than this machine's own address refuses a call without this start's token."""
    import grpc

    processes = psutil.Process(running.process.pid).children(recursive=True)
    ports = [
        each.laddr.port
        for process in processes
        for each in process.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and not each.laddr.ip.removeprefix("::ffff:").startswith("127.")
    ]
    for port in ports:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary("/ray.serve.ASGIService/HandleRequest")(b"", timeout=20)
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert len(ports) == 2  # one of each replica


def check_kill(running, key):
    """Under load one replica is killed, and another comes; then the other old one. What the clients got."""
    load = Load(running, key)
    load.wait_for(60)
    old = replicas(running)
    assert len(old) == 2
    for killed, one in enumerate(old, 1):
        present = set(replicas(running))
        os.kill(one.pid, signal.SIGKILL)
        load.wait_for(60)
        until(partial(came, running, present, 3 + killed))
        load.wait_for(60)
    load.end()
    assert not set(replicas(running)) & set(old)
    assert len(replicas(running)) == 2
    assert {status for status, _ in load.failed} <= {500, 503}
    assert len(load.failed) <= 16  # what ran in a killed replica: at most the four clients' requests, each time
    return load.got


def came(running, present, times):
    """Whether a replica has come that was not present, and has told the record."""
    return len(set(replicas(running)) - present) == 1 and began(running) == times


def began(running):
    """How often the record says that a service began: once before the replicas, then once for each."""
    with running.state.store.database.reading() as connection:
        return sum(json.loads(entry.text)["kind"] == "service began" for entry in entries(connection))


def check_end(running):
    """SIGTERM: what runs is answered, and no process is left."""
    processes = psutil.Process(running.process.pid).children(recursive=True)
    answers = []
    client = threading.Thread(target=lambda: answers.append(running.generate(n=64, steps=128, sampler="heun")))
    rows = running.metric("ctm_call_rows_sum")
    client.start()
    until(lambda: running.metric("ctm_call_rows_sum") > rows)
    running.process.terminate()
    client.join(60)
    assert answers[0].status_code == 200
    assert len(answers[0].json()["data"]) == 64
    assert running.process.wait(60) == 143
    psutil.wait_procs(processes, 20)
    assert not [each for each in processes if each.is_running()]
    return [
        (one["id"], hashlib.sha256(base64.b64decode(one["b64_json"])).hexdigest()) for one in answers[0].json()["data"]
    ]


def check_record(state, got):
    """The record is whole, and every picture that a client got is in the store as it came."""
    findings = verify(state.store, state.store.record.signer.public, read_head(state.folder / "head.json"))
    assert findings.whole, findings.problems
    assert len(got) > 200
    for id, digest in got:
        kept = state.store.picture(id)
        assert (kept.state, kept.sha256) == ("served", digest)
        assert hashlib.sha256(kept.png).hexdigest() == digest


if IS_THERE and find_spec("ray") is not None:

    @pytest.mark.slow
    def test_two_replicas_are_one_service_and_lose_nothing(tmp_path):
        with server() as url:
            state = State.open(tmp_path / "state", url=url)
            most = Rate(per_minute=1000000, per_day=1000000)
            key = state.keys.create("Ada", limits=most)
            few = state.keys.create("Ben", limits=Rate(per_minute=10, per_day=1000))
            options = ("--ray", "--replicas", "2", "--allow", "mynets")
            running = Server(tmp_path / "state", *options, policy=OPEN, CTM_DATABASE=url)
            running.state = state
            try:
                assert [one.environ()["CTM_ALLOW"] for one in replicas(running)] == ["mynets"] * 2
                check_one_service(running, key, few)
                check_events(running)
                check_ports(running)
                got = check_kill(running, key)
                got += check_end(running)
            finally:
                running.stop()
            check_record(state, got)
            state.store.close()
