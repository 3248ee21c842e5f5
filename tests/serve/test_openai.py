"""The `openai` client as it is, against the application."""

import base64
import io
import warnings

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from ctm import sampling
from ctm.pictures import to_uint8
from ctm.serve.app import create_app


@pytest.fixture(scope="module")
def openai():
    """Its client, imported here as that takes seconds, and one process of two runs these tests."""
    import openai

    return openai


@pytest.fixture(scope="module")
def ai(shared, openai):
    _, client = shared
    return openai.OpenAI(api_key="none", base_url="http://testserver/v1", http_client=client, max_retries=0)


def picture(entry):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(entry.b64_json))))


@pytest.fixture(scope="module")
def digit(digits):
    file = io.BytesIO()
    Image.fromarray(to_uint8(sampling.generate(digits, 1, condition=7, seed=2))[0, :, :, 0].numpy()).save(file, "png")
    return file.getvalue()


@pytest.fixture(scope="module")
def mask():
    alpha, file = np.full((8, 8, 4), 255, np.uint8), io.BytesIO()
    alpha[:4, :, 3] = 0
    Image.fromarray(alpha).save(file, "png")
    return file.getvalue()


def test_generate(ai):
    extra = {"seed": 3, "steps": 2, "gamma": 0.5, "guidance": 1.5}
    found = ai.images.generate(
        model="digits-ctm", prompt="7", n=2, size="auto", response_format="b64_json", extra_body=extra
    )
    assert [picture(entry).shape for entry in found.data] == [(8, 8), (8, 8)]
    assert found.created > 1e9
    assert found.model_extra["seed"] == 3
    assert found.data[1].model_extra["label"] == 7
    again = ai.images.generate(prompt="7", n=2, extra_body=extra)
    assert again.data[0].b64_json is not None


def test_edit_and_variation(ai, digit, mask):
    found = ai.images.edit(image=digit, mask=mask, prompt="7", n=2, extra_body={"steps": 4, "seed": 1})
    original = np.asarray(Image.open(io.BytesIO(digit)))
    assert all((picture(entry)[4:] == original[4:]).all() for entry in found.data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        varied = ai.images.create_variation(image=("a.png", digit), n=1, extra_body={"amount": 0.1, "seed": 1})
    assert picture(varied.data[0]).shape == (8, 8)


def test_models(ai):
    assert [model.id for model in ai.models.list()] == ["digits-ctm"]
    assert ai.models.retrieve("digits-ctm").owned_by == "ctm"


def test_previews_of_a_stream(ai):
    extra = {"steps": 12, "sampler": "heun", "seed": 4}
    events = list(ai.images.generate(prompt="5", stream=True, partial_images=3, extra_body=extra))
    assert [event.type for event in events] == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:3]] == [0, 1, 2]
    last = picture(events[-1]).astype(int)
    distances = [np.abs(picture(event) - last).mean() for event in events[:3]]
    assert distances[0] > distances[2]


def test_previews_of_an_edit(ai, digit, mask):
    events = list(
        ai.images.edit(image=digit, mask=mask, prompt="7", stream=True, partial_images=1, extra_body={"steps": 3})
    )
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]


def test_a_preview_is_screened_and_kept_as_every_picture(shared, ai):
    service, _ = shared
    before = len(service.store.listed("served"))
    list(ai.images.generate(prompt="5", n=2, stream=True, partial_images=2, extra_body={"steps": 6}))
    kept = service.store.listed("served")[before:]
    assert sorted(one.claim.get("preview", -1) for one in kept) == [-1, -1, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("BadRequestError", {"prompt": "nothing"}),
        ("NotFoundError", {"prompt": "1", "model": "x"}),
        ("PermissionDeniedError", {"prompt": "1", "n": 999}),
        ("BadRequestError", {"prompt": "1", "size": "256x256"}),
    ],
)
def test_errors_are_the_clients_own(openai, ai, kind, options):
    with pytest.raises(getattr(openai, kind)) as raised:
        ai.images.generate(**options)
    assert raised.value.body["message"]
    assert raised.value.code


def test_an_error_in_a_stream_raises(openai, make_service):
    service = make_service(policy={"thresholds": {"brightness": {"bright": {"block": 0.0}}}})
    with TestClient(create_app(service, stop=False)) as client:
        ai = openai.OpenAI(api_key="none", base_url="http://testserver/v1", http_client=client, max_retries=0)
        with pytest.raises(openai.APIError, match="blocked by the service's filter"):
            list(ai.images.generate(prompt="5", stream=True, partial_images=2, extra_body={"steps": 6}))


def test_keys_and_rates(openai, make_service):
    rates = {"rates": {"user": {"per_minute": 2, "per_day": 100}}}
    service = make_service(policy=rates, keys=[("ada", "user")])
    with TestClient(create_app(service, stop=False)) as client:
        options = {"base_url": "http://testserver/v1", "http_client": client, "max_retries": 0}
        ai = openai.OpenAI(api_key=service.texts[0], **options)
        assert ai.images.generate(prompt="1", n=2).data
        with pytest.raises(openai.RateLimitError):
            ai.images.generate(prompt="1")
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(api_key="wrong", **options).images.generate(prompt="1")
