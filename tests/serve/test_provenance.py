"""What a picture that leaves carries: text, a manifest and, where it was generated, the watermark; and all three agree with the
record."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from ctm import sampling
from ctm.cli import main
from ctm.guidance import ClassifierFree
from ctm.pictures import to_uint8
from ctm.provenance import Claim, detect, manifest, text
from ctm.safety import verify
from ctm.safety.head import read_head
from ctm.safety.signing import Signer

URL = "/v1/images/generations"


@pytest.fixture
def made(service, client):
    """One picture: its bytes, and what the store has of it."""
    answer = client.post(URL, json={"prompt": "7", "seed": 5, "steps": 2, "gamma": 0.5})
    entry = answer.json()["data"][0]
    return base64.b64decode(entry["b64_json"]), service.store.picture(entry["id"])


def test_text_and_manifest_hold_the_records_claim(service, made):
    png, kept = made
    assert png == kept.png
    fields = text.read(png)
    authority = (service.state.folder / "keys" / "c2pa" / "ca.pem").read_text()
    found = manifest.read(png, trust=authority)
    assert found.state == "Trusted"
    assert found.fields == fields
    claim = Claim.from_text(fields)
    assert claim == found.claim() == Claim.from_dict(kept.claim)
    assert (claim.model, claim.seed, claim.index, claim.steps, claim.gamma) == ("digits-ctm", 5, 0, 2, 0.5)
    assert (claim.condition, claim.record) == (7, kept.id)
    assert claim.sampler == "gamma"
    assert fields["kind"] == '"generation"'


def test_a_changed_picture_is_not_as_signed(made):
    png = bytearray(made[0])
    png[-40] ^= 1
    found = manifest.read(bytes(png))
    assert found is None or found.state == "Invalid"


@pytest.mark.filterwarnings("ignore:γ = ")
def test_the_claim_makes_the_image_again(service, digits, made):
    png, _ = made
    claim = Claim.from_text(text.read(png))
    mark = (service.watermark, [claim.nonce_bytes()])
    again = sampling.generate(
        digits, 1, seed=claim.seed, steps=claim.steps, gamma=claim.gamma, condition=claim.condition, watermark=mark
    )
    pixels = np.asarray(Image.open(io.BytesIO(png))).astype(int)
    assert np.abs(to_uint8(again)[0, :, :, 0].numpy() - pixels).max() <= 1


def test_the_watermark_of_a_one_step_picture_is_found_by_the_stores_nonces(service, client, digits):
    answer = client.post(URL, json={"prompt": "7", "n": 4, "seed": 1})
    nonces = service.store.nonces(service.models["digits-ctm"].digest)
    assert len(nonces) == 4
    for entry in answer.json()["data"]:
        mine = service.store.picture(entry["id"]).claim["nonce"]
        x = sampling.generate(digits, 1, seed=1, condition=7)  # of the picture's shape
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(entry["b64_json"]))))
        x[0, 0] = x.new_tensor(pixels / 127.5) - 1
        found = detect(digits, x, service.watermark, [one.nonce for one in nonces], [7])[0]
        assert found.nonce.hex() == mine


def test_the_record_of_a_service_verifies(service, client):
    for n in (1, 5):
        assert client.post(URL, json={"n": n}).status_code == 200
    public = Signer.load_or_create(service.state.folder / "keys").public
    findings = verify(service.store, public, read_head(service.state.folder / "head.json"))
    assert findings.whole, findings.problems
    assert findings.count == 2 + 4


def test_ctm_verify_finds_all_three_in_a_picture_that_left(service, made, tmp_path, capsys):
    file, state = tmp_path / "picture.png", service.state.folder
    file.write_bytes(made[0])
    one_step = service.store.picture(made[1].id)
    assert one_step.png == made[0]
    asked = ["verify", str(file), "--model", "models/digits-ctm", "--state", str(state), "--device", "cpu"]
    assert main(asked) == 0
    out = capsys.readouterr().out
    assert "model digits-ctm" in out
    assert main([*asked, "--expect", "manifest,text"]) == 0


def test_ctm_verify_finds_a_picture_saved_again_by_the_services_nonces(service, client, tmp_path, capsys):
    """Its text and manifest are gone. The database has the nonces of all pictures of the model, one of them twice."""
    for seed in (1, 1, 2):
        answer = client.post(URL, json={"prompt": "7", "n": 2, "seed": seed, "steps": 8})
    entry, file = answer.json()["data"][0], tmp_path / "again.png"
    Image.open(io.BytesIO(base64.b64decode(entry["b64_json"]))).save(file)
    assert not text.read(file.read_bytes())
    asked = [
        "verify",
        str(file),
        "--model",
        "models/digits-ctm",
        "--state",
        str(service.state.folder),
        "--device",
        "cpu",
    ]
    assert main([*asked, "--expect", "watermark"]) == 0
    out = capsys.readouterr().out
    assert f"record {entry['id']}" in out
    assert "for each of 4 tried" in out


@pytest.mark.parametrize(
    "body",
    [
        {"sampler": "heun", "steps": 6, "guidance": 2.0},
        {"sampler": "consistency", "steps": 3},
        {"sampler": "ancestral"},
    ],
)
def test_a_claim_of_any_sampler_makes_the_image_again(service, client, digits, body):
    answer = client.post(URL, json={"prompt": "4", "seed": 9, **body})
    png = base64.b64decode(answer.json()["data"][0]["b64_json"])
    claim = Claim.from_text(text.read(png))
    model = digits if claim.guidance is None else ClassifierFree(digits, claim.guidance)
    options = {
        "grid": torch.tensor(claim.grid),
        "sampler": getattr(sampling, claim.sampler),
        "condition": claim.condition,
    }
    mark = (service.watermark, [claim.nonce_bytes()])
    again = to_uint8(sampling.generate(model, 1, seed=claim.seed, watermark=mark, **options))[0, :, :, 0].numpy()
    assert np.abs(again - np.asarray(Image.open(io.BytesIO(png))).astype(int)).max() <= 1


def test_edits_and_previews_say_what_they_are_and_have_no_nonce(service, client, digits):
    list(client.post(URL, json={"steps": 4, "stream": True, "partial_images": 1}).iter_lines())
    kept = [service.store.picture(one.id) for one in service.store.listed("served")]
    preview, whole = sorted(kept, key=lambda one: "preview" not in one.claim)
    assert preview.claim["nonce"] is None
    assert text.read(preview.png)["preview"] == "0"
    assert len(bytes.fromhex(whole.claim["nonce"])) == 16
    assert "preview" not in text.read(whole.png)
