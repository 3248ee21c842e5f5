"""Edits and variations of pictures that users send; and whatever else they send is refused, never a fault of the service."""

import base64
import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from ctm import sampling
from ctm.pictures import to_uint8
from ctm.serve.app import create_app
from ctm.serve.uploads import read_upload

from ..conftest import slow

EDITS, VARIATIONS = "/v1/images/edits", "/v1/images/variations"


def png(array, mode=None, format="PNG"):
    file = io.BytesIO()
    Image.fromarray(array, mode).save(file, format)
    return file.getvalue()


@pytest.fixture(scope="module")
def digit(digits):
    """A seven, uint8 (8, 8)."""
    return to_uint8(sampling.generate(digits, 1, condition=7, seed=2))[0, :, :, 0].numpy()


@pytest.fixture(scope="module")
def mask():
    """Its upper half is transparent: to be edited."""
    alpha = np.full((8, 8, 4), 255, np.uint8)
    alpha[:4, :, 3] = 0
    return png(alpha)


def pictures(answer):
    assert answer.status_code == 200, answer.text
    return np.stack(
        [np.asarray(Image.open(io.BytesIO(base64.b64decode(one["b64_json"])))) for one in answer.json()["data"]]
    )


def test_an_edit_keeps_what_the_mask_keeps(shared, digit, mask):
    service, client = shared
    files = {"image": ("a.png", png(digit)), "mask": ("m.png", mask)}
    answer = client.post(EDITS, files=files, data={"n": "3", "prompt": "7", "seed": "1"})
    made = pictures(answer)
    assert (made[:, 4:] == digit[4:]).all()
    assert len({one[:4].tobytes() for one in made}) == 3
    claim = service.store.picture(answer.json()["data"][0]["id"]).claim
    assert claim["kind"] == "edit"
    assert claim["nonce"] is None
    assert claim["condition"] == 7


def test_an_edit_fills_the_pictures_own_transparent_part(shared, digit):
    _, client = shared
    own = np.dstack([digit, digit, digit, np.where(np.arange(8)[:, None] < 4, 0, 255) * np.ones((8, 8))])
    made = pictures(client.post(EDITS, files={"image": png(own.astype(np.uint8))}, data={"seed": "1"}))
    assert (made[0, 4:] == digit[4:]).all()


@pytest.mark.slow
def test_a_variation_of_nothing_is_the_picture_and_of_more_is_another(shared, digit):
    _, client = shared
    same, near, far = (
        pictures(
            client.post(
                VARIATIONS, files={"image": png(digit)}, data={"amount": str(amount), "prompt": "7", "seed": "1"}
            )
        )
        for amount in (0, 0.2, 1)
    )
    distances = [np.abs(made[0].astype(int) - digit).mean() for made in (same, near, far)]
    assert distances[0] < 2
    assert distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize("format", ["PNG", slow("JPEG"), slow("WEBP")])
def test_pictures_of_any_size_and_mode_are_taken(shared, digit, format):
    _, client = shared
    large = np.asarray(Image.fromarray(digit).resize((96, 70)).convert("RGB"))
    answer = client.post(VARIATIONS, files={"image": ("x", png(large, format=format), "application/octet-stream")})
    assert pictures(answer).shape == (1, 8, 8)


def bomb():
    """A PNG of 30,000 × 30,000 pixels in 1 MB."""
    rows = zlib.compress(b"\0" * 30_001 * 1000, 9)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def archive():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("index.html", "<script>alert(1)</script>")
    return file.getvalue()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda whole: whole[:40], "whole and with nothing after it"),
        (lambda whole: whole[:-1], "nothing after it"),
        (lambda whole: whole + archive(), "nothing after it"),
        (lambda whole: whole + b"\n", "nothing after it"),
        (lambda whole: b"GIF89a" + whole, "must be a PNG, JPEG or WebP"),
        (lambda whole: b"", "must be a PNG"),
        (lambda whole: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "must be a PNG"),
        (lambda whole: archive(), "must be a PNG"),
        (lambda whole: bomb(), "more than 16,777,216 pixels"),
        (lambda whole: whole[:50] + bytes([whole[50] ^ 255]) + whole[51:], "image"),
    ],
)
def test_what_is_no_whole_picture_is_refused(shared, digit, change, words):
    _, client = shared
    answer = client.post(VARIATIONS, files={"image": change(png(digit))})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] in ("invalid_image", "missing")
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("files", "data", "words"),
    [
        ({}, {}, "missing"),
        ({"image": "digit"}, {}, "no transparent part"),
        ({"image": "digit", "mask": "digit"}, {}, "the mask has no alpha"),
        ({"image": "digit", "mask": "large"}, {}, "give a mask of the picture's size"),
        ({"image": "digit", "mask": "all"}, {}, "everything"),
        ({"image": "digit", "mask": "none"}, {}, "nothing"),
        ({"image": "digit", "mask": "mask"}, {"steps": "1000"}, "at most 128"),
        ({"image": "digit", "mask": "mask"}, {"n": "x"}, "n: "),
        ({"image": "digit", "mask": "mask"}, {"gamma": "1"}, "unknown field"),
        ({"image": "digit", "mask": "mask"}, {"prompt": "cat"}, "must be a class"),
        ({"image": "digit", "image[]": "digit"}, {}, "give one file 'image'"),
        ({"image": "digit", "mask": "mask", "image[]": "digit"}, {}, "files is 2"),
        ({"image": "digit", "other": "mask"}, {}, "takes the files image and mask only"),
    ],
)
def test_what_is_no_edit_is_refused(shared, digit, mask, files, data, words):
    _, client = shared
    full = np.full((8, 8, 4), 255, np.uint8)
    named = {"digit": png(digit), "mask": mask, "large": png(np.zeros((9, 9, 4), np.uint8))}
    named |= {"none": png(full), "all": png(full * np.array([1, 1, 1, 0], np.uint8))}
    given = {name: named[what] for name, what in files.items()}
    answer = client.post(EDITS, files=given or {"x": b""}, data=data)
    assert 400 <= answer.status_code < 500
    if given:
        assert words in answer.json()["error"]["message"]


def test_uploads_go_through_the_policy_and_the_filter(make_service, digit, mask):
    white = png(np.full((8, 8), 255, np.uint8))
    service = make_service(keys=[("ada", "user"), ("mod", "moderator")], policy={"uploads": "moderators"})
    ada, mod = ({"authorization": f"Bearer {text}"} for text in service.texts)
    with TestClient(create_app(service, stop=False)) as client:
        answer = client.post(VARIATIONS, files={"image": png(digit)}, headers=ada)
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "upload_not_allowed"
        assert client.post(VARIATIONS, files={"image": png(digit)}, headers=mod).status_code == 200
        answer = client.post(EDITS, files={"image": white, "mask": mask}, headers=mod)
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "upload_refused"


def attempts():
    """Bytes that are no whole picture, or nearly one: cut, changed, joined, of other kinds."""
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    whole = st.sampled_from([png(grey, format=format) for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")])
    cut = st.builds(lambda content, at: content[: at % (len(content) + 1)], whole, st.integers(0, 10_000))
    flipped = st.builds(
        lambda content, at, bit: bytes(b ^ (1 << bit) if i == at % len(content) else b for i, b in enumerate(content)),
        whole,
        st.integers(0, 10_000),
        st.integers(0, 7),
    )
    joined = st.builds(
        lambda first, second: first + second, whole, st.one_of(whole, st.just(archive()), st.binary(max_size=50))
    )
    return st.one_of(st.binary(max_size=300), cut, flipped, joined, st.just(bomb()))


def check_uploads(client, content, mask, name, kind):
    files = {"image": (name, content, kind)} | ({} if mask is None else {"mask": ("m", mask, kind)})
    for route in (EDITS, VARIATIONS):
        if route == VARIATIONS:
            files.pop("mask", None)
        answer = client.post(route, files=files, data={"steps": "1"} if route == EDITS else {})
        assert answer.status_code == 200 or 400 <= answer.status_code < 500, (answer.status_code, answer.text)


NAMES = st.one_of(st.sampled_from(["a.png", "../../etc/passwd", "a\0b", "x" * 300]), st.text(max_size=20))
TYPES = st.sampled_from(["image/png", "text/html", "application/octet-stream", ""])
SLOW = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=25, **SLOW)
@given(content=attempts(), mask=st.none() | attempts(), name=NAMES, kind=TYPES)
def test_any_upload_is_answered_by_a_picture_or_a_refusal(shared, content, mask, name, kind):
    check_uploads(shared[1], content, mask, name, kind)


@pytest.mark.slow
@settings(max_examples=1500, **SLOW)
@given(content=attempts(), mask=st.none() | attempts(), name=NAMES, kind=TYPES)
def test_very_many_uploads_are_answered_by_a_picture_or_a_refusal(shared, content, mask, name, kind):
    check_uploads(shared[1], content, mask, name, kind)


@pytest.mark.parametrize(
    "body", [b"", b"--x", b"--x\r\n", b"--x\r\ncontent-disposition: form-data\r\n\r\n\r\n--x--\r\n"]
)
@pytest.mark.parametrize(
    "kind", ["multipart/form-data", "multipart/form-data; boundary=x", 'multipart/form-data; boundary=""']
)
def test_a_form_that_is_none_is_refused(shared, body, kind):
    answer = shared[1].post(EDITS, content=body, headers={"content-type": kind})
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["error"]["message"]


def test_a_bomb_costs_no_memory():
    psutil = pytest.importorskip("psutil")
    before = psutil.Process().memory_info().rss
    content = bomb()
    for _ in range(20):
        with pytest.raises(ValueError, match="more than 16,777,216 pixels"):
            read_upload(content, "image")
    assert psutil.Process().memory_info().rss - before < 50e6


@pytest.mark.slow
def test_memory_stays_flat_under_uploads(shared, mask):
    """Of 3 MB each: pictures that are edited, cut ones, bombs, and forms that are too large."""
    psutil = pytest.importorskip("psutil")
    client, noise = shared[1], np.random.default_rng(0)
    whole = png(noise.integers(0, 256, (1000, 1000, 3), dtype=np.uint8))
    transparent = png(
        np.dstack([np.zeros((1000, 1000, 3), np.uint8), 255 * (np.indices((1000, 1000))[0] > 500)]).astype(np.uint8)
    )
    sizes = []
    for number in range(60):
        answers = [
            client.post(EDITS, files={"image": whole, "mask": transparent}, data={"steps": "1"}),
            client.post(VARIATIONS, files={"image": whole[:-1000]}),
            client.post(VARIATIONS, files={"image": bomb()}),
            client.post(VARIATIONS, files={"image": whole * 4}),
        ]
        assert [answer.status_code for answer in answers] == [200, 400, 400, 413]
        if number >= 20:
            sizes.append(psutil.Process().memory_info().rss)
    assert max(sizes) - sizes[0] < 60e6
