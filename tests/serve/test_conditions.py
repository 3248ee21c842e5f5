"""Models with more than classes: fields of a condition in a request, guidance as an input of the network, other shapes."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from ctm import TrajectoryModel, editing, sampling
from ctm.conditioner import Arrays, Labels
from ctm.likelihood import estimate_bits_per_dim
from ctm.models import load_model
from ctm.models.guided import at_guidance
from ctm.networks import MLP
from ctm.noise import karras_grid, to_zero
from ctm.pictures import to_uint8
from ctm.serve.app import create_app

from ..conftest import random_weights
from .conftest import Maker

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


@pytest.fixture(scope="module")
def square(tmp_path_factory):
    """A model of 8×8 pictures with labels and three fields as its condition, of which the policy blocks one, and its client."""
    arrays = {"place": (2,), "matrix": (1, 8, 8), "secret": (1,)}
    network = MLP((1, 8, 8), 4, width=32, blocks=2, embedding=16, arrays=arrays)
    levels = {"sigma_min": 0.1, "sigma_max": 2.0}  # a flow that a solver follows in few evaluations
    model = TrajectoryModel(network, shape=(1, 8, 8), conditioner=Labels(4) | Arrays(arrays), **levels)
    model = random_weights(model).eval()
    maker = Maker(tmp_path_factory.mktemp("square"), {"square": model})
    service = maker(policy={"conditions": {"blocked": ["secret"]}})
    with TestClient(create_app(service, stop=False)) as client:
        yield model, service, client
    maker.close()


def png(seed):
    """A picture of noise, as a file and as the model gets it."""
    pixels, file = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8), io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue(), torch.from_numpy(pixels)[None].float() / 127.5 - 1


MASK = np.zeros((8, 8, 4), np.uint8)
MASK[4:, :, 3] = 255  # the upper half is to be filled


def mask():
    file = io.BytesIO()
    Image.fromarray(MASK).save(file, "png")
    return file.getvalue()


def edited(model, whole, other, condition):
    known = torch.from_numpy(MASK[..., 3] > 0)[None]
    operator = editing.masking(known)
    y = operator.A(whole[None]).expand(2, *whole.shape)
    made = editing.replace(model, operator, y, steps=2, rounds=1, condition=condition(2), seed=5)
    return editing.into_range(made, operator, y)


FORMS = {
    "/v1/images/edits": ({"n": 2, "steps": 2, "rounds": 1}, edited),
    "/v1/ctm/stroke": (
        {"n": 2, "sigma": 1, "steps": 2},
        lambda model, whole, other, condition: editing.stroke(
            model, whole[None].expand(2, 1, 8, 8), 1.0, steps=2, condition=condition(2), seed=5
        ),
    ),
    "/v1/images/variations": (
        {"n": 2, "amount": 0.5},
        lambda model, whole, other, condition: editing.variations(model, whole, 2, 0.5, condition=condition(1), seed=5),
    ),
    "/v1/ctm/interpolate": (
        {"n": 3},
        lambda model, whole, other, condition: editing.interpolate(model, whole, other, 3, condition=condition(2)),
    ),
}


def asked_form(client, url, **fields):
    files = {name: png(seed)[0] for name, seed in {"first": 1, "second": 2}.items()}
    files = files if url.endswith("interpolate") else {"image": png(1)[0]}
    files |= {"mask": mask()} if url.endswith("edits") else {}
    return client.post(url, files=files, data={"prompt": "2", "seed": 5, **fields})


@pytest.mark.parametrize("url", FORMS)
def test_pictures_are_changed_under_the_fields_of_a_condition(square, url):
    """As JSON text, and as the openai client writes a mapping; the picture is the library's under that condition."""
    model, service, client = square
    fields, make = FORMS[url]
    place, matrix = [0.5, -1.5], torch.linspace(-1, 1, 64).reshape(1, 8, 8).tolist()

    def condition(num):
        given = {"place": torch.tensor(place), "matrix": torch.tensor(matrix)}
        return {
            "labels": torch.full((num,), 2),
            **{name: value.expand(num, *value.shape) for name, value in given.items()},
        }

    text = json.dumps({"place": place, "matrix": matrix})
    answer = asked_form(client, url, **fields, condition=text)
    made = to_uint8(make(model, png(1)[1], png(2)[1], condition))[..., 0].numpy().astype(int)
    assert np.abs(pictures(answer) - made).max() <= 1
    claim = service.store.picture(answer.json()["data"][-1]["id"]).claim
    assert claim["condition"]["labels"] == 2
    assert claim["condition"]["place"] == pytest.approx(place)
    one = asked_form(client, url, **fields, **{"condition[place][]": ["0.5", "-1.5"]})
    same = asked_form(client, url, **fields, condition=json.dumps({"place": place}))
    assert np.array_equal(pictures(one), pictures(same))
    assert np.abs(pictures(one) - pictures(answer)).max() > 5


def test_the_likelihood_is_of_the_fields_of_a_condition(square):
    model, _, client = square
    answer = asked_form(client, "/v1/ctm/likelihood", condition='{"place": [0.5, -1.5]}').json()
    condition = {"labels": torch.tensor([2]), "place": torch.tensor([[0.5, -1.5]])}
    pixels = to_uint8(png(1)[1][None])[0].permute(2, 0, 1)
    with torch.enable_grad():
        found = estimate_bits_per_dim(model, pixels[None], condition, probes=4, rtol=1e-3, atol=1e-3, seed=5)
    assert answer["bits_per_dim"] == pytest.approx(float(found.value[0]), abs=1e-3)
    without = asked_form(client, "/v1/ctm/likelihood").json()
    assert abs(without["bits_per_dim"] - answer["bits_per_dim"]) > 0.01


@pytest.mark.parametrize("url", [*FORMS, "/v1/ctm/likelihood"])
def test_fields_of_a_form_that_are_not_right_are_refused(square, url):
    client = square[2]
    for text, words in {
        '{"place": [1]}': "place",
        '{"place": ["x", 1]}': "a regular list of numbers",
        '{"place": ["1_0", " 1 "]}': "a regular list of numbers",
        '{"nothing": 1}': "none that this model takes",
        '{"labels": 1}': "asked for by the prompt",
        "[1, 2]": "condition",
        "{": "condition",
        "[" * 100_001: "100,000 lists and objects",
    }.items():
        answer = asked_form(client, url, condition=text)
        assert answer.status_code == 400, answer.text
        assert words in answer.json()["error"]["message"]
    refused = asked_form(client, url, condition='{"secret": [1]}')
    assert refused.status_code == 403


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
