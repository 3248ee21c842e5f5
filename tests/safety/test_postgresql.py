"""The store on PostgreSQL. A server of its own is started where Debian's `postgresql` and the package psycopg are installed;
elsewhere these tests are not collected."""

import os
import signal
import time
from datetime import timedelta

import pytest

from ctm.safety import State, verify
from ctm.safety.head import read_head
from ctm.safety.record import now

from ..postgresql import IS_THERE, server
from ..processes import FORK
from .states import picture


@pytest.fixture(scope="module")
def url():
    with server() as url:
        yield url


def whole(state):
    return verify(state.store, state.store.record.signer.public, read_head(state.folder / "head.json"))


def serve_without_end(folder, url, acknowledged):
    state = State.open(folder, url=url)
    with open(acknowledged, "a", buffering=1) as file:
        while True:
            one = picture(content=os.urandom(2000))
            state.store.serve([one])
            file.write(f"{one.id}\n")


def check_all_of_it(tmp_path, url):
    """One after the other on one database: what SQLite's tests do, writers at once, and kills."""
    state = State.open(tmp_path / "state", url=url)
    served, held = picture("pass", b"one", nonce="00ff", condition=3), picture("hold")
    state.store.serve([served, held])
    state.store.release(held.id, "Ann", "fine")
    state.store.report(served.id, "my face")
    text = state.keys.create("Ann")
    assert state.keys.find(text).name == "Ann"
    assert state.store.picture(served.id).png == b"one"
    assert state.store.nonces("abc")[0].nonce == b"\x00\xff"
    assert state.store.expire(now() + timedelta(days=31)).pictures == 1
    assert state.store.picture(served.id).png is None
    assert whole(state).problems == []
    acknowledged = tmp_path / "acknowledged"
    for _ in range(3):
        processes = [
            FORK.Process(target=serve_without_end, args=(tmp_path / "state", url, acknowledged)) for _ in range(3)
        ]
        for process in processes:
            process.start()
        size = acknowledged.stat().st_size if acknowledged.exists() else 0
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and (not acknowledged.exists() or acknowledged.stat().st_size < size + 330):
            time.sleep(0.01)
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        findings = whole(state)
        assert findings.problems == []
        ids = acknowledged.read_text().split()
        assert findings.count >= len(ids) + 6
        assert all(state.store.picture(id).state == "served" for id in ids)
    state.store.close()


if IS_THERE:

    @pytest.mark.slow
    def test_postgresql_keeps_what_sqlite_keeps(tmp_path, url):
        check_all_of_it(tmp_path, url)

    def test_a_server_that_does_not_answer_is_a_sentence_without_its_password():
        from ctm.safety.store import Store

        with pytest.raises(
            OSError, match=r"^the database postgresql\+psycopg://ann:\*\*\*@127.0.0.1:1/x fails: "
        ) as caught:
            Store("postgresql+psycopg://ann:secret-word@127.0.0.1:1/x")
        assert "secret-word" not in str(caught.value)
        assert "\n" not in str(caught.value)
