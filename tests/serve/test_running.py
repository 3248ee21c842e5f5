"""`ctm serve` as a process: a client over the network, one that hangs up, the end by SIGTERM, and what is refused first."""

import socket
import threading
import time

import pytest

from ctm.cli import main
from ctm.evaluation.extractors import checksum_of
from ctm.safety import Picture, State, Verdict
from ctm.safety.pictures import new_id

from .server import MODEL, Server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("served") / "state")
    yield made
    made.stop()


def test_the_openai_client_against_a_running_server(server):
    import openai

    ai = openai.OpenAI(api_key="none", base_url=server.url, max_retries=0)
    assert len(ai.images.generate(prompt="3", n=4, extra_body={"steps": 2}).data) == 4
    events = list(ai.images.generate(prompt="3", stream=True, partial_images=2, extra_body={"steps": 6}))
    assert [event.type.split(".")[1] for event in events] == ["partial_image", "partial_image", "completed"]
    with pytest.raises(openai.BadRequestError, match="must be a class"):
        ai.images.generate(prompt="x")
    ai.close()


def test_each_thing_that_is_used_has_a_line(server):
    lines = (server.process.output / "out").read_text().splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "model digits-ctm",
        "keys",
        "policy",
        "filter",
        "state",
        "page",
        "address",
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_its_rows(server, stream):
    """A request of minutes is sent and given up; its rows are free within seconds."""
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    body = f'{{"n": 200, "steps": 128, "sampler": "midpoint", "stream": {str(stream).lower()}}}'
    request = f"POST /v1/images/generations HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"{request}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        _until(lambda: server.metric("ctm_queue_rows") == 200)
    _until(lambda: server.metric("ctm_queue_rows") == 0)


def _until(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_sigterm_finishes_what_runs_and_takes_no_more(tmp_path):
    server = Server(tmp_path / "state")
    answers = []
    ask = threading.Thread(target=lambda: answers.append(server.generate(n=64, steps=100, sampler="heun")))
    ask.start()
    _until(lambda: server.metric("ctm_queue_rows") == 64)
    server.process.terminate()
    ask.join(60)
    assert answers[0].status_code == 200
    assert len(answers[0].json()["data"]) == 64
    assert server.process.wait(30) == 143
    assert "stopped by SIGTERM" in server.process.communicate()[1]
    server.stop()


def test_secrets_that_are_gone_are_said(tmp_path, capsys, monkeypatch, digits):
    """Anew they fit nothing that was made before, and that is said before the first request."""
    monkeypatch.setattr("ctm.serve.running.run", lambda service, bound, hosts: bound.close())
    state = State.open(tmp_path / "state")
    state.keys.revoke(state.keys.find(state.keys.create("Ada")).id)
    claim = {"model_digest": checksum_of(digits), "nonce": "00"}
    state.store.serve([Picture(new_id(), b"a picture", claim, Verdict("pass", ""))])
    state.store.close()
    arguments = ["serve", MODEL, "--port", "0", "--state", str(tmp_path / "state")]
    assert main(arguments) == 0  # makes watermark.key
    capsys.readouterr()
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "keys: all revoked; no request is answered" in said
    assert "filter: NO filter sees the pictures of digits-ctm, which pass unseen" in " ".join(said.split())
    assert "was gone" not in said
    for name in ("api.secret", "watermark.key"):
        (tmp_path / "state" / "keys" / name).unlink()
    assert main(arguments) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "keys/api.secret was gone and is new" in said
    assert "keys/watermark.key was gone and is new" in said


def mistake(capsys, *arguments):
    assert main(["serve", *arguments]) == 2
    return capsys.readouterr().err


def test_what_cannot_be_served_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = ["--state", str(tmp_path / "state")]
    assert "this service has no API keys" in mistake(capsys, MODEL, "--host", "0.0.0.0", *state)
    assert "there is no directory models/nothing" in mistake(capsys, "models/nothing", *state)
    assert "has the name 'digits-ctm', as another model here" in mistake(capsys, MODEL, MODEL, *state)
    (tmp_path / "policy.yaml").write_text("max_image: 3")
    assert "did you mean max_images?" in mistake(capsys, MODEL, "--policy", str(tmp_path / "policy.yaml"), *state)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert "cannot be taken" in mistake(capsys, MODEL, "--port", port, *state)


def test_without_the_extra_a_sentence_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("ctm.serve.extra.NEEDED", ("fastapi", "no_such_package"))
    assert 'needs no_such_package, which is not installed: pip install "ctm-torch[serve]"' in mistake(capsys, MODEL)
