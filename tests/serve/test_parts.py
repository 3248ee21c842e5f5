"""The parts of a service alone: work in batches, prompts, names of models, bodies of forms, addresses."""

import asyncio
import threading

import pytest

from ctm.serve.batching import Batcher
from ctm.serve.guards import Guard, is_loopback
from ctm.serve.names import label_of
from ctm.serve.running import allowed_hosts, bind, check_address
from ctm.serve.service import model_names


def test_work_that_comes_meanwhile_is_done_in_one_call():
    gate, calls = threading.Event(), []

    def work(items):
        calls.append(list(items))
        gate.wait(10)
        return [item * 10 for item in items]

    batcher = Batcher(work, "test", most=6)
    first = batcher.submit([1])
    while not calls:
        pass
    others = [batcher.submit([number, number]) for number in range(2, 6)]
    gate.set()
    assert first.result(10) == [10]
    assert [other.result(10) for other in others] == [[20, 20], [30, 30], [40, 40], [50, 50]]
    assert calls == [[1], [2, 2, 3, 3, 4, 4], [5, 5]]
    assert batcher.stop(10)
    with pytest.raises(RuntimeError, match="was stopped"):
        batcher.submit([1])


def test_an_error_in_a_batch_is_of_the_request_that_has_it():
    gate, started = threading.Event(), threading.Event()

    def work(items):
        started.set()
        gate.wait(10)
        return [1 / item for item in items]

    batcher = Batcher(work, "test")
    batcher.submit([1])
    started.wait(10)
    good, bad, wanted = batcher.submit([2]), batcher.submit([0]), batcher.submit([4])
    assert wanted.cancel()
    gate.set()
    assert good.result(10) == [0.5]
    with pytest.raises(ZeroDivisionError):
        bad.result(10)
    batcher.stop()


def test_results_of_another_number_are_an_error():
    batcher = Batcher(lambda items: [], "test")
    with pytest.raises(ValueError, match="0 results came for 2 items"):
        batcher.submit([1, 2]).result(10)
    batcher.stop()


NAMES = ["T-shirt", "Trouser", "3", "Über", "same", "SAME"]


@pytest.mark.parametrize(
    ("prompt", "label"),
    [
        ("", None),
        ("  ", None),
        ("Trouser", 1),
        ("trouser", 1),
        (" T-shirt ", 0),
        ("3", 2),  # a name goes before a number
        ("5", 5),
        ("0", 0),
        ("U\u0308ber", 3),
        ("same", 4),
        ("SAME", 5),
    ],
)
def test_a_prompt_is_a_class_by_name_or_number(prompt, label):
    assert label_of(prompt, 6, NAMES) == label


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("Trousers", "did you mean Trouser?"),
        ("6", "in 0 … 5, got '6'"),
        ("-1", "in 0 … 5"),
        ("²", "in 0 … 5"),
        ("Same", "got 'Same'"),
        ("1" * 500, "in 0 … 5"),
        ("\ud800", "in 0 … 5"),
    ],
)
def test_a_prompt_that_is_no_class_is_refused(prompt, words):
    with pytest.raises(ValueError, match="the prompt must be a class") as refused:
        label_of(prompt, 6, NAMES)
    assert words in str(refused.value)


def test_a_model_without_classes_takes_no_prompt():
    assert label_of("", 0) is None
    with pytest.raises(ValueError, match="has no classes"):
        label_of("cat", 0)


def test_models_have_the_names_of_their_directories(tmp_path):
    for name in ("a/model", "b"):
        (tmp_path / name).mkdir(parents=True)
    assert model_names([str(tmp_path / "a" / "model"), str(tmp_path / "b"), "someone/c"]) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="give its directory another name"):
        model_names([str(tmp_path / "b"), "someone/b"])


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
def test_an_address_of_this_machine_needs_no_keys(host):
    assert is_loopback(host)
    check_address(host, keys=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_an_address_that_others_reach_needs_keys(host):
    with pytest.raises(ValueError, match="this service has no API keys"):
        check_address(host, keys=False)
    check_address(host, keys=True)


def test_a_service_without_keys_answers_under_this_machines_names():
    assert allowed_hosts("127.0.0.1", False, ["my.host"]) == ["127.0.0.1", "localhost", "[::1]", "127.0.0.1", "my.host"]
    assert allowed_hosts("0.0.0.0", True) is None


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70_000), ("256.1.1.1", 0), ("no such host", 0)])
def test_an_address_that_cannot_be_is_a_sentence(host, port):
    with pytest.raises(ValueError, match=r"cannot be taken|must be in 0 … 65535"):
        bind(host, port)


def test_a_body_that_does_not_come_is_given_up():
    """The application waits for a body whose sender has gone silent."""
    sent = []

    async def silent():
        await asyncio.sleep(60)

    async def application(scope, receive, send):
        await receive()

    async def run():
        scope = {"type": "http", "headers": [(b"host", b"x")], "method": "POST", "path": "/"}

        async def send(message):
            sent.append(message)

        guard = Guard(application, largest=100, seconds=0.05)
        with pytest.raises(Exception, match="did not come within"):
            await guard(scope, silent, send)

    asyncio.run(run())


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "null", "http://x@y", "x"])
def test_an_origin_that_is_no_address_is_refused(origin):
    """It is another page's, and not a failure of the service."""
    sent = []

    async def run():
        headers = [(b"host", b"x"), (b"origin", origin.encode())]

        async def send(message):
            sent.append(message)

        await Guard(None, largest=100)({"type": "http", "headers": headers, "method": "GET", "path": "/"}, None, send)

    asyncio.run(run())
    assert sent[0]["status"] == 403
