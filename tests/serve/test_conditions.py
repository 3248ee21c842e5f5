"""Models with more than classes: fields of a condition in a request, guidance as an input of the network, other shapes."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from ctm import TrajectoryModel, sampling
from ctm.conditioner import Arrays, Labels
from ctm.models import load_model
from ctm.models.guided import at_guidance
from ctm.networks import MLP
from ctm.noise import karras_grid, to_zero
from ctm.pictures import to_uint8
from ctm.serve.app import create_app

from ..conftest import random_weights

URL = "/v1/images/generations"


def pictures(answer):
    assert answer.status_code == 200, answer.text
    entries = answer.json()["data"]
    return np.stack([np.asarray(Image.open(io.BytesIO(base64.b64decode(one["b64_json"])))) for one in entries]).astype(
        int
    )


def expected(model, num, service, answer, **options):
    """What `ctm.generate` makes with the nonces that the store has."""
    claims = [service.store.picture(one["id"]).claim for one in answer.json()["data"]]
    mark = (service.watermark, [bytes.fromhex(claim["nonce"]) for claim in claims])
    return to_uint8(sampling.generate(model, num, seed=5, watermark=mark, **options))[..., 0].numpy()


@pytest.fixture
def asked(make_service):
    """A model of 5×8 pictures with labels and two numbers as its condition, and its client."""
    conditioner = Labels(4) | Arrays({"place": (2,)})
    network = MLP((1, 5, 8), 4, width=32, blocks=2, embedding=16, arrays={"place": (2,)})
    model = random_weights(TrajectoryModel(network, shape=(1, 5, 8), conditioner=conditioner)).eval()
    service = make_service(models={"places": model})
    with TestClient(create_app(service, stop=False)) as client:
        yield model, service, client


def test_fields_of_a_condition_for_all_images_and_for_each(asked):
    model, service, client = asked
    for place in ([0.3, -2.0], [[0.3, -2.0], [1.5, 0.25]]):
        answer = client.post(URL, json={"prompt": "2", "n": 2, "seed": 5, "condition": {"place": place}})
        condition = {"labels": torch.tensor([2, 2]), "place": torch.tensor(place)}
        assert np.abs(pictures(answer) - expected(model, 2, service, answer, condition=condition)).max() <= 1
        claim = service.store.picture(answer.json()["data"][1]["id"]).claim
        assert claim["condition"]["labels"] == 2
        assert claim["condition"]["place"] == pytest.approx(np.broadcast_to(place, (2, 2))[1].tolist())
    plain = client.post(URL, json={"prompt": "2", "n": 2, "seed": 5})
    assert np.abs(pictures(plain) - pictures(answer)).max() > 5
    assert client.get("/v1/models/places").json()["conditions"] == {"place": [2]}
    assert client.get("/v1/models/places").json()["size"] == "8x5"


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ({"place": [1.0]}, "place"),
        ({"place": [[1.0, 2.0]] * 3}, "place"),
        ({"place": "here"}, "a regular list of numbers"),
        ({"place": [10**400, 1]}, "a regular list of numbers"),
        ({"place": [1e39, 1]}, "place"),
        ({"place": None}, "place"),
        ({"guidance": 2.0}, "a field of its own"),
    ],
)
def test_fields_that_are_not_right_are_refused(asked, condition, words):
    answer = asked[2].post(URL, json={"n": 2, "condition": condition})
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]["message"]


def test_uploads_need_square_pictures(asked):
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "png")
    answer = asked[2].post("/v1/images/variations", files={"image": file.getvalue()})
    assert answer.status_code == 400
    assert "need a model of square pictures" in answer.json()["error"]["message"]


def test_guidance_that_is_an_input_of_the_network(make_service):
    network = MLP((1, 8, 8), 4, width=32, blocks=2, embedding=16, guidance_embedding=True)
    model = random_weights(TrajectoryModel(network, shape=(1, 8, 8), num_classes=4)).eval()
    service = make_service(models={"guided": model})
    with TestClient(create_app(service, stop=False)) as client:
        made = {}
        for scale in (None, 1.0, 3.0):
            body = {"prompt": "2", "n": 2, "seed": 5, **({} if scale is None else {"guidance": scale})}
            answer = client.post(URL, json=body)
            made[scale] = pictures(answer)
            again = expected(at_guidance(model, scale or 1.0), 2, service, answer, condition=torch.tensor([2, 2]))
            assert np.abs(made[scale] - again).max() <= 1
        assert "guidance" not in client.get("/v1/models/guided").json()["conditions"]


def test_a_diffusion_model_is_sampled_and_varied_and_does_not_edit(make_service):
    teacher = load_model("models/digits-teacher")
    service = make_service(models={"digits-teacher": teacher})
    own, file = np.zeros((8, 8, 4), np.uint8), io.BytesIO()
    own[4:, :, 3] = 255
    Image.fromarray(own).save(file, "png")
    with TestClient(create_app(service, stop=False)) as client:
        answer = client.post(URL, json={"prompt": "2", "n": 2, "seed": 5})
        assert answer.json()["sampler"] == "heun"
        assert answer.json()["steps"] == 18
        options = {"grid": to_zero(karras_grid(17)), "sampler": sampling.heun, "condition": torch.tensor([2, 2])}
        assert np.abs(pictures(answer) - expected(teacher, 2, service, answer, **options)).max() <= 1
        assert client.post(URL, json={"sampler": "gamma"}).status_code == 400
        refused = client.post("/v1/images/edits", files={"image": file.getvalue()})
        assert refused.status_code == 400
        assert "edits need a model that jumps" in refused.json()["error"]["message"]
        assert "gamma" not in client.get("/v1/models/digits-teacher").json()["samplers"]
        varied = client.post("/v1/images/variations", files={"image": file.getvalue()}, data={"prompt": "2"})
        assert pictures(varied).shape == (1, 8, 8)
