"""What one client can ask of a service's memory and of its other clients' time."""

import asyncio
import io
import json
import shutil
import threading
import time

import pytest
from PIL import Image
from starlette.testclient import TestClient

from ctm.serve.app import create_app
from ctm.serve.errors import ApiError
from ctm.serve.guards import Guard
from ctm.serve.limits import Counts
from ctm.serve.receiving import Receiver

GENERATIONS = "/v1/images/generations"


def test_two_requests_at_once_have_their_pictures_in_full_size(service):
    """Others wait, and of those that wait there is a bound."""
    receiver, inside, most = Receiver(service), 0, 0

    async def one():
        nonlocal inside, most
        async with receiver.turn():
            inside, most = inside + 1, max(most, inside + 1)
            await asyncio.sleep(0.001)
            inside -= 1

    async def run():
        tasks = [asyncio.ensure_future(one()) for _ in range(70)]
        return await asyncio.gather(*tasks, return_exceptions=True)

    failed = [error for error in asyncio.run(run()) if error is not None]
    assert most == 2
    assert {type(error) for error in failed} == {ApiError}
    assert {error.status for error in failed} == {429}
    assert len(failed) == 70 - 2 - 64


@pytest.mark.parametrize("steps", ["1" + 20 * "0", "6" + 4299 * "0"])
@pytest.mark.parametrize("route", [GENERATIONS, "/v1/ctm/path"])
def test_very_large_numbers_are_a_mistake_in_the_request(shared, route, steps):
    """Twice the second has more digits than Python writes."""
    more = ', "guesses": true' if route.endswith("path") else ""
    text = f'{{"prompt": "3", "steps": {steps}{more}}}'
    answer = shared[1].post(route, content=text, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert "steps" in answer.json()["error"]["message"]


def test_a_body_of_very_many_lists_or_fields_is_refused_before_it_is_read(shared):
    headers = {"content-type": "application/json"}
    lists = b'{"condition": {"x": [' + b",".join([b"[]"] * 200_000) + b"]}}"
    answer = shared[1].post(GENERATIONS, content=lists, headers=headers)
    assert (answer.status_code, "more than 100,000 lists" in answer.text) == (400, True)
    fields = json.dumps({f"a{number}": 1 for number in range(20_000)})
    answer = shared[1].post(GENERATIONS, content=fields, headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "a0")


def test_a_long_body_is_read_beside_the_others(service):
    """Ticks of the event loop go on while 3 MB of JSON are read."""
    body = b'{"condition": {"x": [' + b",".join([b"0.1"] * 800_000) + b"]}}"

    async def run():
        app, ticks, sent = create_app(service, stop=False), 0, []
        scope = {"type": "http", "method": "POST", "path": GENERATIONS, "query_string": b"", "root_path": ""}
        scope |= {"headers": [(b"host", b"x"), (b"content-type", b"application/json")], "http_version": "1.1"}

        async def receive():
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message):
            sent.append(message)

        task = asyncio.ensure_future(app(scope, receive, send))
        while not task.done():
            await asyncio.sleep(0.001)
            ticks += 1
        await task
        return ticks, sent[0]["status"]

    ticks, status = asyncio.run(run())
    assert status == 400
    assert ticks > 20


def test_all_bodies_together_are_bounded_and_small_ones_are_taken():
    """33 bodies of 100 kB are begun; the last of them is refused, and a body of one byte is not."""
    taken, errors = [], []

    async def application(scope, receive, send):
        await receive()
        taken.append(scope["size"])
        await scope["end"].wait()

    async def run():
        guard, end = Guard(application, largest=100_000), asyncio.Event()

        async def one(size):
            async def receive():
                return {"type": "http.request", "body": bytes(size), "more_body": False}

            scope = {"type": "http", "headers": [(b"host", b"x")], "size": size, "end": end}
            try:
                await guard(scope, receive, None)
            except ApiError as error:
                errors.append(error.status)

        tasks = [asyncio.ensure_future(one(size)) for size in [100_000] * 33 + [1]]
        await asyncio.sleep(0.05)
        assert (taken, errors) == ([100_000] * 32 + [1], [429])
        end.set()
        await asyncio.gather(*tasks)
        await one(100_000)

    asyncio.run(run())
    assert errors == [429]


def test_what_waits_for_a_likelihood_does_not_keep_a_variation_waiting(service, client):
    """Likelihoods that take minutes: more than there are threads for anything."""
    end, file = threading.Event(), io.BytesIO()
    for _ in range(40):
        service.slow.submit(end.wait, 60)
    try:
        Image.new("L", (8, 8), 90).save(file, "png")
        answer = client.post("/v1/images/variations", files={"image": file.getvalue()}, data={"prompt": "3"})
        assert answer.status_code == 200
        assert not end.is_set()
    finally:
        end.set()


def test_a_clock_that_is_set_keeps_nobody_out(monkeypatch):
    """`limits` counts by the clock: set back by an hour, it would count what was asked for as an hour to come."""
    counts = Counts()
    assert counts.take("key", 2, 10, 2) is None
    assert counts.take("key", 2, 10, 1).words == "minute"
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() - 3600)
    assert counts.take("key", 2, 10, 2) is None
    assert counts.take("key", 2, 10, 1) is not None
    assert counts.take_report("key")


def test_a_service_whose_head_cannot_be_written_is_not_ready_and_gives_nothing_out(make_service, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    service = make_service(policy={"head": str(elsewhere / "head.json")})
    with TestClient(create_app(service, stop=False)) as client:
        assert client.get("/readyz").status_code == 200
        shutil.rmtree(elsewhere)
        elsewhere.write_text("a file where the directory was")
        for answer in (client.get("/readyz"), client.post(GENERATIONS, json={"prompt": "3"})):
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "state"
        elsewhere.unlink()
        assert client.get("/readyz").status_code == 200
        assert client.post(GENERATIONS, json={"prompt": "3"}).status_code == 200
