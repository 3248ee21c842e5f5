"""kill -9 while pictures are served: nothing that was acknowledged is lost, and the record stays whole."""

import os
import random
import signal
import time

import pytest

from ctm.safety import State, verify
from ctm.safety.head import read_head

from ..processes import FORK
from .states import picture


def _serve_without_end(folder, acknowledged):
    """Serve and release. What was acknowledged is written to a file after the store returned, as an answer would be sent."""
    state = State.open(folder)
    with open(acknowledged, "a", buffering=1) as file:
        while True:
            one, held = picture(content=os.urandom(2000)), picture("hold")
            state.store.serve([one, held])
            file.write(f"{one.id} served\n{held.id} held\n")
            state.store.release(held.id, "Ann")
            file.write(f"{held.id} released\n")


def _killed(tmp_path, times):
    folder, acknowledged = tmp_path / "state", tmp_path / "acknowledged"
    State.open(folder).store.close()
    moments = random.Random(0)
    for _ in range(times):
        size = acknowledged.stat().st_size if acknowledged.exists() else 0
        process = FORK.Process(target=_serve_without_end, args=(folder, acknowledged))
        process.start()
        begun = time.monotonic()
        while not (acknowledged.exists() and acknowledged.stat().st_size > size) and time.monotonic() - begun < 30:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        _check(folder, acknowledged)


def _check(folder, acknowledged):
    state = State.open(folder)
    lines = [line.split() for line in acknowledged.read_text().splitlines()]
    assert len(lines) >= 2
    states = {id: state.store.picture(id).state for id, _ in lines}
    last = dict(lines)
    for (
        id,
        known,
    ) in last.items():  # the newest that was acknowledged, or a later one that the kill kept from being said
        assert states[id] == known or (known == "held" and states[id] == "released")
    findings = verify(state.store, state.store.record.signer.public, read_head(folder / "head.json"))
    assert findings.problems == []
    assert findings.count >= len(lines)
    state.store.close()


def test_two_kills_lose_nothing(tmp_path):
    _killed(tmp_path, 2)


@pytest.mark.slow
def test_twenty_kills_lose_nothing(tmp_path):
    _killed(tmp_path, 20)
