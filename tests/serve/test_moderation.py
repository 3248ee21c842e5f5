"""The moderators' routes: their key alone opens them, and what they decide is what users then get."""

import pytest
from starlette.testclient import TestClient

from ctm.serve.app import create_app

from .test_api import URL, error

HOLD = {"thresholds": {"brightness": {"bright": {"hold": 0.0}}}}


@pytest.fixture
def held(make_service):
    """A service that holds every picture, its client, the headers of a user and of a moderator, and a held picture's id."""
    service = make_service(policy=HOLD, keys=[("ada", "user"), ("grace", "moderator")])
    user, moderator = ({"authorization": f"Bearer {text}"} for text in service.texts)
    with TestClient(create_app(service, stop=False)) as client:
        answer = client.post(URL, json={"prompt": "1", "seed": 1}, headers=user)
        id = error(answer, 403, "moderation_held")["pictures"][0]["id"]
        yield service, client, user, moderator, id


def test_only_a_moderators_key_opens_them(held):
    service, client, user, _, id = held
    routes = ["held", "reports", f"pictures/{id}", f"pictures/{id}/png"]
    decisions = [f"pictures/{id}/release", f"pictures/{id}/reject", f"reports/{id}/close"]
    for method, paths in (("GET", routes), ("POST", decisions)):
        for path in paths:
            body = {} if method == "GET" else {"json": {}}
            error(client.request(method, f"/v1/moderation/{path}", **body), 401, "invalid_api_key")
            error(client.request(method, f"/v1/moderation/{path}", headers=user, **body), 403, "not_a_moderator")
    assert service.store.picture(id).state == "held"


def test_they_need_a_key_where_others_need_none(make_service):
    service = make_service()
    with TestClient(create_app(service, stop=False)) as client:
        assert client.post(URL, json={"prompt": "1"}).status_code == 200
        error(client.get("/v1/moderation/held"), 401)
        text = service.state.keys.create("grace", "moderator")
        assert client.get("/v1/moderation/held", headers={"authorization": f"Bearer {text}"}).json()["data"] == []


def test_a_released_picture_is_given_to_who_asked_for_it(held):
    service, client, user, moderator, id = held
    listed = client.get("/v1/moderation/held", headers=moderator).json()["data"]
    assert [one["id"] for one in listed] == [id]
    assert listed[0]["claim"]["seed"] == 1
    assert "png" not in listed[0]
    png = client.get(f"/v1/moderation/pictures/{id}/png", headers=moderator)
    assert png.content == service.store.picture(id).png
    assert png.headers["content-type"] == "image/png"
    error(client.get(f"/v1/images/{id}", headers=user), 404)
    answer = client.post(f"/v1/moderation/pictures/{id}/release", json={"reason": "a digit"}, headers=moderator)
    assert answer.json()["state"] == "released"
    assert client.get(f"/v1/images/{id}", headers=user).content == png.content
    history = client.get(f"/v1/moderation/pictures/{id}", headers=moderator).json()["history"]
    assert [entry["kind"] for entry in history] == ["held", "released"]
    assert "grace" in str(history[1])
    assert client.get("/v1/moderation/held", headers=moderator).json()["data"] == []


def test_a_rejection_needs_a_reason(held):
    service, client, _, moderator, id = held
    path = f"/v1/moderation/pictures/{id}/reject"
    assert "needs a reason" in error(client.post(path, json={"reason": " "}, headers=moderator), 400)["message"]
    assert client.post(path, json={"reason": "no"}, headers=moderator).status_code == 200
    assert service.store.picture(id).state == "rejected"
    error(client.post(path, json={"reason": "again"}, headers=moderator), 400, "not_decided")
    error(client.post("/v1/moderation/pictures/none/reject", json={"reason": "x"}, headers=moderator), 404)


def test_a_report_is_listed_and_closed(held):
    service, client, user, moderator, id = held
    assert client.post("/v1/reports", json={"picture": id, "words": "odd"}, headers=user).status_code == 201
    (report,) = client.get("/v1/moderation/reports", headers=moderator).json()["data"]
    assert (report["picture"], report["words"], report["closed"]) == (id, "odd", None)
    path = f"/v1/moderation/reports/{report['id']}/close"
    assert client.post(path, json={"answer": "seen"}, headers=moderator).status_code == 200
    assert client.get("/v1/moderation/reports", headers=moderator).json()["data"] == []
    error(client.post(path, json={"answer": "seen"}, headers=moderator), 400, "not_decided")
    assert service.store.reports(every=True)[0].answer == "seen"


def test_a_picture_without_bytes_is_said_to_have_none(make_service):
    policy = {"thresholds": {"brightness": {"bright": {"block": 0.0}}}}
    service = make_service(policy=policy, keys=[("grace", "moderator")])
    headers = {"authorization": f"Bearer {service.texts[0]}"}
    with TestClient(create_app(service, stop=False)) as client:
        id = error(client.post(URL, json={"prompt": "1"}, headers=headers), 403)["pictures"][0]["id"]
        error(client.get(f"/v1/moderation/pictures/{id}/png", headers=headers), 404, "picture_not_kept")
