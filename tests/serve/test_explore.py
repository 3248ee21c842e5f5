"""The routes under /v1/ctm: the same noise, the path of jumps, strokes, interpolation, likelihood."""

import asyncio
import io
import math
from concurrent.futures import Future

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from ctm import editing, sampling
from ctm.models import load_model
from ctm.pictures import to_uint8
from ctm.serve.app import create_app
from ctm.serve.explore import together
from ctm.serve.explore_routes import likelihood_of
from ctm.serve.tickets import CancelledError

from .conftest import Maker
from .test_api import error, pictures


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


@pytest.fixture(scope="module")
def teacher():
    return load_model("models/digits-teacher")


@pytest.fixture(scope="module")
def both(tmp_path_factory, digits, teacher):
    """A service of student and teacher, and its client."""
    made = Maker(tmp_path_factory.mktemp("both"), {"student": digits, "teacher": teacher})
    service = made()
    with TestClient(create_app(service, stop=False)) as client:
        yield service, client
    made.close()


def again(service, model, entry, **options):
    """The image that an entry's claim tells of, made by the library."""
    claim = entry["claim"]
    watermark = (service.watermark, bytes.fromhex(claim["nonce"]))
    options |= {"seed": claim["seed"], "condition": claim["condition"], "watermark": watermark}
    return to_uint8(sampling.generate(model, 1, **options))[0, :, :, 0].numpy()


def near(made, other):
    """Equal but for pixels that rounding moves to the next value."""
    return np.abs(made.astype(int) - other).max() <= 1


def test_variants_are_made_of_one_noise(both, digits, teacher):
    service, client = both
    ways = [{"model": "student", "steps": 1}, {"model": "student", "steps": 3, "gamma": 0.5}, {"model": "teacher"}]
    answer = client.post("/v1/ctm/compare", json={"variants": ways, "prompt": "4", "seed": 9})
    assert answer.status_code == 200
    made, entries = pictures(answer), answer.json()["data"]
    assert [entry["claim"]["model"] for entry in entries] == ["student", "student", "teacher"]
    assert len({entry["claim"]["nonce"] for entry in entries}) == 1
    assert near(made[0], again(service, digits, entries[0], steps=1))
    assert near(made[1], again(service, digits, entries[1], steps=3, gamma=0.5))
    grid = torch.tensor(entries[2]["claim"]["grid"])
    assert near(made[2], again(service, teacher, entries[2], grid=grid, sampler=sampling.heun))
    kept = [service.store.picture(entry["id"]) for entry in entries]
    assert [picture.claim["digest"] for picture in kept] == [
        service.models[n].digest for n in ("student", "student", "teacher")
    ]


def test_a_seed_gives_the_same_picture_in_every_request(both):
    _, client = both
    one = client.post("/v1/images/generations", json={"prompt": "4", "seed": 9})
    two = client.post("/v1/images/generations", json={"prompt": "4", "seed": 9})
    first = client.post("/v1/ctm/compare", json={"variants": [{"steps": 1}], "prompt": "4", "seed": 9})
    path = client.post("/v1/ctm/path", json={"prompt": "4", "seed": 9, "steps": 1})
    for other in (two, first, path):
        assert near(pictures(one)[0], pictures(other)[0])
    assert not near(
        pictures(one)[0], pictures(client.post("/v1/images/generations", json={"prompt": "4", "seed": 10}))[0]
    )


def test_a_path_ends_at_the_picture(both):
    service, client = both
    options = {"prompt": "2", "seed": 3, "steps": 4, "gamma": 0.3}
    answer = client.post("/v1/ctm/path", json={**options, "guesses": True})
    made, entries = pictures(answer), answer.json()["data"]
    claims = [entry["claim"] for entry in entries]
    assert [(claim["shows"], claim["step"]) for claim in claims] == [
        (k, i) for k in ("state", "guess") for i in range(4)
    ]
    assert near(made[3], pictures(client.post("/v1/images/generations", json=options))[0])
    assert [claim["nonce"] is not None for claim in claims] == [index == 3 for index in range(8)]
    assert claims[0]["from"] == 80
    assert claims[3]["to"] == pytest.approx(0.002)
    assert claims[0]["to"] == pytest.approx(math.sqrt(1 - 0.3**2) * claims[1]["from"], rel=1e-4)  # t' = √(1−γ²)·t₊
    assert np.abs(made[0].astype(int) - made[4]).mean() > 30  # noise, and the clean guess in it
    assert np.abs(made[3].astype(int) - made[7]).max() <= 1  # at σ_min they are the same
    assert len({service.store.picture(entry["id"]).state for entry in entries}) == 1


def test_strokes_are_those_of_the_library(both, digits):
    _, client = both
    drawn = np.zeros((8, 8), np.uint8)
    drawn[1:7, 3:5] = 255
    fields = {"model": "student", "prompt": "1", "seed": "5", "sigma": "2.5", "steps": "2", "gamma": "0.4", "n": "2"}
    answer = client.post("/v1/ctm/stroke", data=fields, files={"image": png(drawn)})
    assert answer.status_code == 200, answer.text
    x = torch.from_numpy(drawn).float()[None, None].expand(2, 1, 8, 8) / 127.5 - 1
    options = {"steps": 2, "gamma_share": 0.4, "condition": torch.tensor([1, 1]), "seed": 5}
    alone = to_uint8(editing.stroke(digits, x, 2.5, **options))[:, :, :, 0].numpy()
    assert near(pictures(answer), alone)
    claim = answer.json()["data"][0]["claim"]
    assert (claim["kind"], claim["sigma"], claim["nonce"], len(claim["grid"])) == ("stroke", 2.5, None, 3)


@pytest.mark.slow
def test_an_interpolation_has_its_ends(both, digits):
    _, client = both
    ends = to_uint8(sampling.generate(digits, 2, condition=torch.tensor([1, 8]), seed=1))[:, :, :, 0].numpy()
    files = {"first": png(ends[0]), "second": png(ends[1])}
    answer = client.post("/v1/ctm/interpolate", data={"n": "5"}, files=files)
    assert answer.status_code == 200, answer.text
    made = pictures(answer)
    assert made.shape == (5, 8, 8)
    for index, end in ((0, ends[0]), (4, ends[1])):  # the flow there and back, each way to 1e-4
        assert np.abs(made[index].astype(int) - end).max() <= 4
    error(client.post("/v1/ctm/interpolate", data={"n": "1"}, files=files), 400)
    assert (
        "second" in error(client.post("/v1/ctm/interpolate", files={"first": png(ends[0])}), 400, "missing")["message"]
    )


def test_a_digit_is_likelier_than_noise(both, digits):
    service, client = both
    real = to_uint8(sampling.generate(digits, 1, condition=7, steps=4, seed=2))[0, :, :, 0].numpy()
    noise = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    bits = []
    for picture in (real, noise):
        answer = client.post("/v1/ctm/likelihood", data={"prompt": "7", "seed": "1"}, files={"image": png(picture)})
        assert answer.status_code == 200, answer.text
        bits.append(answer.json()["bits_per_dim"])
    assert bits[0] + 1 < bits[1]
    assert service.models["student"].scheduler.rows == 0


def test_a_likelihood_that_is_given_up_frees_its_row(both):
    service, _ = both
    served = service.models["student"]
    picture = torch.full((1, 8, 8), -1.0)

    async def give_up():
        task = asyncio.ensure_future(likelihood_of(service, served, torch.tensor([3]), picture, 1))
        await asyncio.sleep(0.03)
        assert served.scheduler.rows == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for _ in range(500):
            if served.scheduler.rows == 0:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("its row is not free")

    asyncio.run(give_up())


def test_what_cannot_be_asked_is_refused_in_sentences(both, digits):
    _, client = both
    ways = [{"model": "student"}] * 33
    error(client.post("/v1/ctm/compare", json={"variants": ways}), 400, "invalid_value")
    error(client.post("/v1/ctm/compare", json={"variants": []}), 400, "invalid_value")
    error(client.post("/v1/ctm/compare", json={"variants": [{"model": "x"}]}), 404, "model_not_found")
    error(client.post("/v1/ctm/compare", json={"variants": [{"model": "teacher", "gamma": 0.5}]}), 400)
    said = error(client.post("/v1/ctm/path", json={"model": "teacher"}), 400)["message"]
    assert "a path is made of jumps" in said
    error(client.post("/v1/ctm/path", json={"steps": 33, "guesses": True}), 403, "too_many_images")
    error(client.post("/v1/ctm/path", json={"sampler": "heun", "steps": 4}), 400)
    drawn = {"image": png(np.zeros((8, 8), np.uint8))}
    error(client.post("/v1/ctm/stroke", data={"sigma": "100"}, files=drawn), 400)
    error(client.post("/v1/ctm/stroke", data={"model": "teacher"}, files=drawn), 400)
    error(client.post("/v1/ctm/likelihood", files={"image": b"no picture"}), 400, "invalid_image")
    error(client.post("/v1/ctm/likelihood", files={"picture": png(np.zeros((8, 8), np.uint8))}), 400)


def test_one_noise_fits_one_shape(make_service, digits):
    service = make_service(models={"student": digits, "fashion": load_model("models/fashion-mnist-ctm")})
    with TestClient(create_app(service, stop=False)) as client:
        ways = [{"model": "student"}, {"model": "fashion"}]
        said = error(client.post("/v1/ctm/compare", json={"variants": ways}), 400)["message"]
        assert "one noise fits models of one shape" in said


def test_the_policy_holds_here_too(make_service):
    policy = {"classes": {"blocked": ["7"]}, "uploads": "nobody", "max_images": 3}
    service = make_service(policy=policy)
    with TestClient(create_app(service, stop=False)) as client:
        error(client.post("/v1/ctm/compare", json={"variants": [{}], "prompt": "7"}), 403, "class_not_allowed")
        error(client.post("/v1/ctm/path", json={"prompt": "7"}), 403, "class_not_allowed")
        ways = [{"guidance": 2}, {"guidance": 0}]  # 0: no class, so any
        error(client.post("/v1/ctm/compare", json={"variants": ways, "prompt": "1"}), 403, "class_not_allowed")
        error(client.post("/v1/ctm/path", json={"prompt": "1", "guidance": -5}), 403, "class_not_allowed")
        error(client.post("/v1/ctm/compare", json={"variants": [{}] * 4, "prompt": "1"}), 403, "too_many_images")
        drawn = {"image": png(np.zeros((8, 8), np.uint8))}
        for route in ("stroke", "likelihood"):
            error(client.post(f"/v1/ctm/{route}", data={"prompt": "1"}, files=drawn), 403, "upload_not_allowed")


def test_each_frame_goes_through_the_filter(make_service):
    policy = {"thresholds": {"brightness": {"bright": {"hold": 0.0}}}}
    service = make_service(policy=policy)
    with TestClient(create_app(service, stop=False)) as client:
        answer = client.post("/v1/ctm/path", json={"prompt": "1", "steps": 3})
        assert len(error(answer, 403, "moderation_held")["pictures"]) == 3
        assert len(service.store.held()) == 3


def test_the_first_error_ends_all_futures():
    futures = [Future(), Future(), Future()]
    whole = together(futures)
    futures[0].set_result(torch.zeros(1))
    futures[1].set_exception(ValueError("this one"))
    assert futures[2].cancelled()
    with pytest.raises(ValueError, match="this one"):
        whole.result(1)


def test_giving_up_gives_up_all():
    futures = [Future(), Future()]
    whole = together(futures)
    assert whole.cancel()
    assert all(future.cancelled() for future in futures)
    whole = together([Future(), Future()])
    assert not whole.done()
    done = [Future(), Future()]
    whole = together(done)
    done[1].set_result(torch.ones(1))
    done[0].set_result(torch.zeros(2))
    assert torch.equal(whole.result(1), torch.tensor([0.0, 0.0, 1.0]))
    lost = [Future()]
    whole = together(lost)
    lost[0].cancel()
    with pytest.raises(CancelledError):
        whole.result(1)
