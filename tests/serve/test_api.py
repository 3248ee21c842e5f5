"""The routes: what is asked for is made, what cannot be is refused in OpenAI's shape, and nothing leaves that is not kept."""

import base64
import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from ctm import sampling
from ctm.pictures import to_uint8
from ctm.serve.app import create_app

URL = "/v1/images/generations"


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def pictures(answer):
    """The pixels of an answer's images, (N, H, W)."""
    return np.stack([pixels(base64.b64decode(entry["b64_json"])) for entry in answer.json()["data"]])


def error(answer, status, code=None):
    """The error of an answer, which has OpenAI's shape."""
    assert answer.status_code == status, answer.text
    found = answer.json()["error"]
    assert {"message", "type", "param", "code"} <= set(found)
    assert code in (None, found["code"]), found
    return found


def marked(service, digits, answer, index, **options):
    """The image again, as `ctm.generate` makes it from what the store knows of it."""
    claim = service.store.picture(answer.json()["data"][index]["id"]).claim
    nonces = [bytes(16)] * claim["index"] + [bytes.fromhex(claim["nonce"])]
    options |= {
        "seed": claim["seed"],
        "steps": claim["steps"],
        "gamma": claim["gamma"],
        "condition": claim["condition"],
    }
    made = sampling.generate(digits, claim["index"] + 1, watermark=(service.watermark, nonces), **options)
    return to_uint8(made)[claim["index"], :, :, 0].numpy()


@pytest.mark.filterwarnings("ignore:.*share .* nonce", "ignore:γ = ")
def test_images_are_those_of_generate_with_the_servers_watermark(service, client, digits):
    answer = client.post(URL, json={"prompt": "7", "n": 3, "seed": 5, "steps": 2, "gamma": 0.5})
    assert answer.status_code == 200
    made = pictures(answer)
    assert made.shape == (3, 8, 8)
    for index in range(3):
        again = marked(service, digits, answer, index)
        assert np.abs(made[index].astype(int) - again).max() <= 1
    body = answer.json()
    assert [entry["label"] for entry in body["data"]] == [7, 7, 7]
    assert body["seed"] == 5
    assert body["steps"] == 2
    nonces = {service.store.picture(entry["id"]).claim["nonce"] for entry in body["data"]}
    assert len(nonces) == 3


def test_an_empty_prompt_is_the_models_own_draw(client, digits):
    answer = client.post(URL, json={"n": 8, "seed": 3})
    assert [entry["label"] for entry in answer.json()["data"]] == sampling.class_labels(digits, 8, None, 3).tolist()
    one, other = (client.post(URL, json={}).json()["seed"] for _ in range(2))
    assert one != other


def test_guidance_changes_the_image(client):
    plain, guided = (
        pictures(client.post(URL, json={"prompt": "3", "seed": 1, "n": 4, **more})) for more in ({}, {"guidance": 3.0})
    )
    assert np.abs(plain.astype(int) - guided).max() > 20


def test_an_address_gives_the_same_bytes(service, client):
    answer = client.post(URL, json={"prompt": "2", "response_format": "url", "seed": 1})
    entry = answer.json()["data"][0]
    assert entry["b64_json"] is None
    got = client.get(entry["url"])
    assert got.status_code == 200
    assert got.headers["content-type"] == "image/png"
    assert got.content == service.store.picture(entry["id"]).png


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        ({"prompt": "horse"}, 400, "invalid_value", "the prompt must be a class"),
        ({"prompt": "10"}, 400, "invalid_value", "0 … 9"),
        ({"n": 0}, 400, "invalid_value", "n: "),
        ({"n": 65}, 403, "too_many_images", "at most 64 images"),
        ({"n": "2"}, 400, "invalid_value", "n: "),
        ({"n": True}, 400, "invalid_value", "n: "),
        ({"size": "1024x1024"}, 400, "invalid_value", "8x8"),
        ({"model": "dall-e-3"}, 404, "model_not_found", "there is no model 'dall-e-3' here: there is digits-ctm"),
        ({"steps": 1000}, 400, "invalid_value", "at most 128"),
        ({"gamma": 2.0}, 400, "invalid_value", "gamma"),
        ({"sampler": "euler", "gamma": 0.5}, 400, "invalid_value", "gamma belongs to"),
        ({"sampler": "magic"}, 400, "invalid_value", "sampler must be one of"),
        ({"style": "vivid"}, 400, "unknown_parameter", "unknown field 'style': this request takes model"),
        ({"seed": -1}, 400, "invalid_value", "seed"),
        ({"seed": 2**64}, 400, "invalid_value", "seed"),
        ({"condition": {"foo": [1]}}, 400, "invalid_value", "foo"),
        ({"condition": {"labels": [1]}}, 400, "invalid_value", "by the prompt"),
        ({"condition": {"foo": ["x", [1]]}}, 400, "invalid_value", "regular list of numbers"),
        ({"partial_images": 2}, 400, "invalid_value", "belong to a stream"),
        ({"quality": "hd"}, 400, "invalid_value", "quality"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(client, body, status, code, words):
    assert words in error(client.post(URL, json=body), status, code)["message"]


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, "invalid_json"),
        (b"\xff\xfe", "application/json", 400, "invalid_json"),
        (b'{"n": NaN}', "application/json", 400, "invalid_json"),
        (b'{"n": 1e999}', "application/json", 400, "invalid_json"),
        (b'{"n": 1, "n": 2}', "application/json", 400, "invalid_json"),
        (b"[" * 100_000, "application/json", 400, "invalid_json"),
        (b"[]", "application/json", 400, "invalid_value"),
        (b"{}", "text/plain", 415, "wrong_content_type"),
        (b"{}", "", 415, "wrong_content_type"),
        (b"{}", "application/json; charset=utf-16", 415, "wrong_content_type"),
        (b"{}", 'application/json; charset="latin-1"', 415, "wrong_content_type"),
        (b" " * 10_000_001, "application/json", 413, "too_large"),
    ],
)
def test_a_body_that_is_none_is_refused(client, content, kind, status, code):
    error(client.post(URL, content=content, headers={"content-type": kind}), status, code)


def test_a_body_in_another_encoding_is_refused(client):
    """A header that would change what the body means is not left out."""
    body, kind = b'{"seed": 1}', {"content-type": "application/json"}
    for encoding in ("gzip", "br", "identity, deflate"):
        answer = client.post(URL, content=body, headers=kind | {"content-encoding": encoding})
        words = error(answer, 415, "wrong_content_encoding")["message"]
        assert words == f"the body must be sent as it is, without Content-Encoding, got {encoding}"
    for headers in ({"content-encoding": "identity"}, {"content-type": 'application/json; charset="UTF-8"'}):
        assert client.post(URL, content=body, headers=kind | headers).status_code == 200


def form(*parts: bytes) -> bytes:
    return b"".join(b"--b\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts) + b"--b--\r\n"


def part(name: bytes, value: bytes, headers: bytes = b"") -> bytes:
    return b'name="' + name + b'"\r\n' + headers + b"\r\n" + value


@pytest.mark.parametrize(
    ("field", "words"),
    [
        (part(b"seed", b"1_0"), "seed: must be a whole number in digits, got '1_0'"),
        (part(b"seed", b" 1 "), "seed: must be a whole number in digits, got ' 1 '"),
        (part(b"seed", b"1.0"), "seed: must be a whole number in digits, got '1.0'"),
        (part(b"seed", "١".encode()), "seed: must be a whole number in digits"),
        (part(b"n", b"+1"), "n: must be a whole number in digits, got '+1'"),
        (part(b"amount", b" .5"), "amount: must be a number in digits, got ' .5'"),
        (part(b"condition[x][]", b"1_0"), "the condition 'x' must be a number or a regular list of numbers, in digits"),
        (part(b"prompt", b"\xe9"), "the field 'prompt' is no text in UTF-8"),
        (
            part(b"prompt", "7".encode("utf-16-le"), b"Content-Type: text/plain; charset=utf-16\r\n"),
            "the field 'prompt' must be text in UTF-8",
        ),
        (part(b"prompt", b"Nw==", b"Content-Transfer-Encoding: base64\r\n"), "the part 'prompt' is encoded"),
    ],
)
def test_a_field_of_a_form_is_read_as_json_would_be(client, field, words):
    kind = {"content-type": "multipart/form-data; boundary=b"}
    answer = client.post("/v1/images/variations", content=form(field), headers=kind)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]
    for more in ({"content-type": "multipart/form-data; boundary=b; charset=latin-1"}, {"content-encoding": "gzip"}):
        assert client.post("/v1/images/variations", content=form(field), headers=kind | more).status_code == 415


def test_a_body_without_a_length_is_counted_while_it_comes(client):
    def endless():
        for _ in range(200):
            yield b" " * 100_000

    error(client.post(URL, content=endless(), headers={"content-type": "application/json"}), 413, "too_large")


def test_unknown_routes_and_methods_have_the_same_shape(client):
    error(client.get("/v1/nothing"), 404, "not_found")
    answer = client.get(URL)
    error(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"
    error(client.get("/v1/images/../../etc/passwd"), 404)
    error(client.get("/v1/images/%2e%2e%2fservice.sqlite3"), 404)


def test_models_say_what_they_take(client):
    listed = client.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["digits-ctm"]
    one = client.get("/v1/models/digits-ctm").json()
    assert one["size"] == "8x8"
    assert one["class_names"] == [str(i) for i in range(10)]
    error(client.get("/v1/models/other"), 404, "model_not_found")


def test_health_and_metrics(service, client):
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json()["status"] == "ready"
    client.post(URL, json={"n": 5})
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = answer.text
    assert 'ctm_requests_total{route="/v1/images/generations",status="200"} 1.0' in text
    assert 'ctm_pictures_total{decision="pass"} 5.0' in text
    assert 'ctm_queue_rows{model="digits-ctm"} 0.0' in text
    assert 'ctm_filter_calls_total{filter="brightness",outcome="ran"} 1.0' in text
    for stage in ("network", "filter", "signing", "database"):
        assert f'ctm_stage_seconds_count{{stage="{stage}"}} 1.0' in text


def test_the_end_of_the_last_key_does_not_open_a_service(make_service):
    first = make_service(keys=[("Ada",)])
    first.state.keys.revoke(first.state.keys.list()[0].id)
    first.stop()
    with TestClient(create_app(make_service(), stop=False)) as client:
        assert client.post(URL, json={}).status_code == 401


def test_pictures_that_are_not_kept_have_no_address(make_service):
    service = make_service(policy={"retention": {"served": 0}})
    with TestClient(create_app(service, stop=False)) as client:
        said = error(client.post(URL, json={"response_format": "url"}), 400, "invalid_value")
        assert "does not keep pictures" in said["message"]
        ways = {"variants": [{}], "response_format": "url"}
        error(client.post("/v1/ctm/compare", json=ways), 400, "invalid_value")
        assert client.post(URL, json={}).status_code == 200


def test_the_policy_decides_before_anything_is_computed(make_service):
    service = make_service(policy={"classes": {"blocked": [3]}, "max_images": 2})
    with TestClient(create_app(service, stop=False)) as client:
        error(client.post(URL, json={"prompt": "3"}), 403, "class_not_allowed")
        error(client.post(URL, json={}), 403, "class_not_allowed")
        error(client.post(URL, json={"prompt": "4", "guidance": 0}), 403, "class_not_allowed")
        error(client.post(URL, json={"prompt": "4", "n": 3}), 403, "too_many_images")
        assert client.post(URL, json={"prompt": "4", "n": 2}).status_code == 200
    assert "ctm_call_rows_count" in service.meters.text().decode()
    assert len(service.store.listed("served")) == 2


@pytest.mark.parametrize(
    ("threshold", "code"), [({"hold": 0.0}, "moderation_held"), ({"block": 0.0}, "moderation_blocked")]
)
def test_held_and_blocked_pictures_do_not_leave(make_service, threshold, code):
    service = make_service(policy={"thresholds": {"brightness": {"bright": threshold}}})
    with TestClient(create_app(service, stop=False)) as client:
        found = error(client.post(URL, json={"prompt": "4", "n": 2}), 403, code)
        ids = [picture["id"] for picture in found["pictures"]]
        assert len(ids) == 2
        for id in ids:
            error(client.get(f"/v1/images/{id}"), 404, "picture_not_found")
        if code == "moderation_held":
            service.store.release(ids[0], "a moderator")
            assert client.get(f"/v1/images/{ids[0]}").content.startswith(b"\x89PNG")
            error(client.get(f"/v1/images/{ids[1]}"), 404)


def test_pictures_that_pass_leave_beside_one_that_is_held(make_service):
    """The answer has those that pass, and names the other."""
    service = make_service(policy={"thresholds": {"brightness": {"bright": {"hold": 0.33}}}})
    with TestClient(create_app(service, stop=False)) as client:
        answer = client.post(URL, json={"n": 30, "seed": 1}).json()
    held = {kept.id for kept in service.store.held()}
    assert held
    assert {entry["id"] for entry in answer["withheld"]} == held
    assert len(answer["data"]) == 30 - len(held)
    assert not held & {entry["id"] for entry in answer["data"]}


class Broken:
    name, checksum, categories = "brightness", "1" * 64, ("bright",)
    from ctm.safety.filters import Limits

    limits = Limits()

    def __init__(self, result):
        self.result = result

    def __call__(self, images):
        if self.result is None:
            raise RuntimeError("no")
        return [{"bright": self.result}] * len(images)


@pytest.mark.parametrize("result", [None, float("nan"), 7.0])
def test_nothing_is_served_where_the_filter_fails(make_service, result):
    service = make_service(filters=[Broken(result)])
    with TestClient(create_app(service, stop=False)) as client:
        error(client.post(URL, json={"n": 3}), 403, "moderation_blocked")
    assert service.store.listed("served") == []
    assert len(service.store.listed("blocked")) == 3


def test_keys_are_asked_for_where_there_are_any(make_service):
    service = make_service(keys=[("ada", "user"), ("bob", "user"), ("mod", "moderator")])
    ada, bob, mod = ({"authorization": f"Bearer {text}"} for text in service.texts)
    with TestClient(create_app(service, stop=False)) as client:
        for wrong in (
            {},
            {"authorization": "Bearer nothing"},
            {"authorization": "Basic eDp5"},
            {"authorization": "Bearer "},
        ):
            answer = client.post(URL, json={}, headers=wrong)
            assert error(answer, 401, "invalid_api_key")["type"] == "authentication_error"
            assert answer.headers["www-authenticate"] == "Bearer"
            error(client.get("/metrics", headers=wrong), 401)
            error(client.get("/v1/models", headers=wrong), 401)
        assert client.get("/healthz").status_code == 200
        made = client.post(URL, json={"response_format": "url"}, headers=ada).json()["data"][0]
        assert client.get(made["url"], headers=ada).status_code == 200
        error(client.get(made["url"], headers=bob), 404)
        error(client.get(made["url"]), 401)
        assert client.get(made["url"], headers=mod).status_code == 200
        key = service.store.picture(made["id"]).key_id
        service.state.keys.revoke(key)
        error(client.post(URL, json={}, headers=ada), 401)


def test_rates_are_of_images_and_of_each_key(make_service):
    rates = {"rates": {"user": {"per_minute": 4, "per_day": 6}}}
    service = make_service(policy=rates, keys=[("ada", "user"), ("bob", "user")])
    ada, bob = ({"authorization": f"Bearer {text}"} for text in service.texts)
    with TestClient(create_app(service, stop=False)) as client:
        assert client.post(URL, json={"n": 3}, headers=ada).status_code == 200
        answer = client.post(URL, json={"n": 2}, headers=ada)
        assert "limit of 4 a minute" in error(answer, 429, "rate_limit_exceeded")["message"]
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert client.post(URL, json={"n": 1}, headers=ada).status_code == 200
        assert client.post(URL, json={"n": 4}, headers=bob).status_code == 200
        error(client.post(URL, json={"n": 5}, headers=bob), 400, "rate_too_small")


def test_a_full_queue_is_429(make_service, digits):
    service = make_service(queue=4)
    give_back = service.models["digits-ctm"].scheduler.take_rows(3)
    with TestClient(create_app(service, stop=False)) as client:
        answer = client.post(URL, json={"n": 2})
        error(answer, 429, "queue_full")
        assert int(answer.headers["retry-after"]) >= 1
        give_back()
        assert client.post(URL, json={"n": 2}).status_code == 200
        error(client.post(URL, json={"n": 5}), 400)


def test_a_request_that_is_not_done_in_time_is_504_and_frees_its_rows(make_service):
    service = make_service(deadline=1e-6)
    with TestClient(create_app(service, stop=False)) as client:
        error(client.post(URL, json={"n": 2, "steps": 20}), 504, "deadline_passed")
    assert service.models["digits-ctm"].scheduler.rows == 0


def test_reports_are_kept_and_bounded(service, client):
    id = client.post(URL, json={}).json()["data"][0]["id"]
    answer = client.post("/v1/reports", json={"picture": id, "words": "this is no digit"})
    assert answer.status_code == 201
    assert [(report.picture, report.words) for report in service.store.reports()] == [(id, "this is no digit")]
    error(client.post("/v1/reports", json={"picture": "0" * 32, "words": "x"}), 404, "picture_not_found")
    error(client.post("/v1/reports", json={"picture": id, "words": " "}), 400)
    codes = [client.post("/v1/reports", json={"picture": id, "words": "again"}).status_code for _ in range(40)]
    assert set(codes) == {201, 429}


def test_nothing_of_a_request_is_logged(make_service, caplog):
    service = make_service(keys=[("ada", "user")])
    with TestClient(create_app(service, stop=False), raise_server_exceptions=False) as client:
        service.outbox.deliver = None  # a fault of the service
        headers = {"authorization": f"Bearer {service.texts[0]}"}
        error(client.post(URL, json={"prompt": "7"}, headers=headers), 500, "internal_error")
    assert "a request failed: TypeError" in caplog.text
    assert service.texts[0] not in caplog.text


def test_a_service_answers_under_its_own_names_only(service):
    app = create_app(service, hosts=["127.0.0.1", "[::1]"], stop=False)
    with TestClient(app, base_url="http://evil.example") as client:
        error(client.get("/v1/models"), 421, "wrong_host")
    for base in ("http://127.0.0.1:8000", "http://[::1]:8000"):
        with TestClient(app, base_url=base) as client:
            assert client.get("/v1/models").status_code == 200
            error(client.post(URL, json={}, headers={"origin": "http://evil.example"}), 403, "wrong_origin")
            assert client.post(URL, json={}, headers={"origin": base}).status_code == 200


def test_the_document_has_every_route_and_no_answer_that_never_comes(client):
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/v1/images/generations",
        "/v1/images/edits",
        "/v1/images/variations",
        "/v1/images/{id}",
        "/v1/models",
        "/v1/models/{model}",
        "/v1/reports",
        "/v1/ctm/compare",
        "/v1/ctm/path",
        "/v1/ctm/stroke",
        "/v1/ctm/interpolate",
        "/v1/ctm/likelihood",
        "/v1/moderation/held",
        "/v1/moderation/reports",
        "/v1/moderation/reports/{id}/close",
        "/v1/moderation/pictures/{id}",
        "/v1/moderation/pictures/{id}/png",
        "/v1/moderation/pictures/{id}/release",
        "/v1/moderation/pictures/{id}/reject",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    text = json.dumps(document)
    assert "422" not in text
    assert "HTTPValidationError" not in text


def test_nothing_leaves_that_cannot_be_kept(service, client):
    """The head of the record cannot be written: 503, and no picture; then it can be again."""
    head, service.store.head = service.store.head, Path("/proc/nothing/head.json")
    error(client.post(URL, json={"n": 2}), 503, "state")
    service.store.head = head
    assert client.post(URL, json={}).status_code == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_service_whose_network_has_failed_is_not_ready(service):
    scheduler = service.models["digits-ctm"].scheduler
    scheduler._round = None  # a fault that is no request's
    with TestClient(create_app(service, stop=False), raise_server_exceptions=False) as client:
        error(client.post(URL, json={}), 500, "internal_error")
        error(client.get("/readyz"), 503, "stopping")
        error(client.post(URL, json={}), 503, "stopping")
        assert client.get("/healthz").status_code == 200


def test_what_is_too_old_is_deleted_when_the_service_begins(make_service):
    """Its address answers 404 then; what is not too old stays."""
    service = make_service(policy={"retention": {"served": 0.0000001}})
    with TestClient(create_app(service, stop=False)) as client:
        id = client.post(URL, json={}).json()["data"][0]["id"]
        assert client.get(f"/v1/images/{id}").status_code == 200
    with TestClient(create_app(service, stop=False)) as client:
        _until(lambda: client.get(f"/v1/images/{id}").status_code == 404)
    assert service.store.picture(id).state == "deleted"


def _until(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)
