"""`ctm verify`: what it finds in marked, signed, changed and plain pictures, and what it then says."""

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ctm import generate, load_model
from ctm.evaluation.extractors import checksum_of
from ctm.noise import karras_grid
from ctm.pictures import to_uint8
from ctm.provenance import Claim, text
from ctm.provenance.manifest import Signer

from .test_cli import run, sentence

MODEL = Path(__file__).parents[2] / "models" / "digits-ctm"
KEY = bytes(range(32))
NONCES = [i.to_bytes(8, "big") for i in range(8)]
LISTED = (2, 5, 6)  # the nonces that are tried: each of another condition, which takes its own way back
SHOWN = 6  # an image of which nearly all signs come back, so that no processor's rounding hides it


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """A service's directory with its keys, and the nonces of its images."""
    folder = tmp_path_factory.mktemp("state")
    Signer.load_or_create(folder / "keys" / "c2pa")
    (folder / "keys" / "watermark.key").write_bytes(KEY)
    lines = [
        json.dumps({"nonce": nonce.hex(), "condition": i, "record": f"r{i}"})
        for i, nonce in enumerate(NONCES)
        if i in LISTED
    ]
    (folder / "nonces.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def made(state):
    """(pixels (8, 8), claim) of a marked digit."""
    model = load_model(MODEL)
    options = {"steps": 8, "seed": 3, "condition": torch.arange(8), "watermark": (KEY, NONCES)}
    pixels = to_uint8(generate(model, 8, **options))[SHOWN, ..., 0].numpy()
    claim = Claim(
        model="digits-ctm",
        digest=checksum_of(model),
        seed=3,
        index=SHOWN,
        steps=8,
        gamma=0.0,
        grid=tuple(karras_grid(8).tolist()),
        condition=SHOWN,
        nonce=NONCES[SHOWN].hex(),
        created="2026-01-02T03:04:05Z",
        record=f"r{SHOWN}",
    )
    return pixels, claim


def as_png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


@pytest.fixture
def picture(state, made, tmp_path):
    """A function that writes a picture file: pixels, the claim of its text, the claim of its manifest (None: without)."""

    def write(pixels=made[0], texts=made[1], signed=made[1], name="picture.png"):
        content = as_png(pixels)
        content = content if texts is None else text.write(content, texts.as_text())
        if signed is not None:
            content = Signer.load_or_create(state / "keys" / "c2pa").sign(content, signed)
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


def lines(capsys, *arguments) -> dict[str, str]:
    """What `ctm verify` prints, by the first word of each line; exit code 0."""
    code, out, err = run(capsys, "verify", *arguments)
    assert code == 0, err
    return {line.split()[0]: line for line in out.splitlines() if not line.startswith(" ")} | {"all": out}


def test_all_three_are_found(capsys, state, picture):
    found = lines(capsys, picture(), "--state", state, "--model", MODEL, "--nonces", state / "nonces.jsonl")
    assert "trusted, signed by ctm development, ctm development signer; it says: model digits-ctm" in found["manifest"]
    assert "8 jumps, γ = 0, condition 6, watermark 0000000000000006" in found["text"]
    assert "found: " in found["watermark"]
    assert "fit nonce 0000000000000006, condition 6, record r6" in found["watermark"]
    assert "for each of 3 tried" in found["watermark"]
    assert "altered" not in found
    assert "the signer's word" in found["all"]
    assert "anybody can write and change it" in found["all"]
    assert "copy its mark into another picture" in found["all"]


def test_the_nonce_of_the_claim_is_tried_without_a_list(capsys, state, picture):
    for options in ({}, {"signed": None}):
        found = lines(capsys, picture(**options), "--state", state, "--model", MODEL)
        assert "found: " in found["watermark"]
        assert "for each of 1 tried" in found["watermark"]


def test_a_picture_saved_again_keeps_its_watermark_alone(capsys, state, picture, tmp_path):
    again = tmp_path / "again.bmp"
    Image.open(picture()).save(again)
    options = ["--state", state, "--model", MODEL, "--nonces", state / "nonces.jsonl"]
    found = lines(capsys, again, *options, "--expect", "watermark")
    assert found["manifest"].split() == ["manifest", "none"]
    assert "none: it is kept in PNG files only" in found["text"]
    assert "found: " in found["watermark"]
    assert "record r6" in found["watermark"]
    err = sentence(capsys, "verify", again, *options, "--expect", "text,manifest,watermark")
    assert "no valid text and no trusted manifest, which --expect asks for" in err


def test_an_unmarked_picture_is_not_found(capsys, state, picture):
    unmarked = to_uint8(generate(load_model(MODEL), 1, steps=8, seed=99, condition=4))[0, ..., 0].numpy()
    file = picture(unmarked, None, None)
    found = lines(capsys, file, "--state", state, "--model", MODEL, "--nonces", state / "nonces.jsonl")
    assert "not found; the best: " in found["watermark"]
    assert "does not show that it was never there" in found["all"]
    assert "no valid watermark" in sentence(
        capsys,
        "verify",
        file,
        "--state",
        state,
        "--model",
        MODEL,
        "--nonces",
        state / "nonces.jsonl",
        "--expect",
        "watermark",
    )


def test_a_strangers_manifest_is_not_the_trusted_one_that_is_expected(capsys, state, made, picture, tmp_path):
    """Anybody can sign the same claim with a certificate of their own."""
    forged = tmp_path / "forged.png"
    content = text.write(as_png(made[0]), made[1].as_text())
    forged.write_bytes(Signer.load_or_create(tmp_path / "theirs").sign(content, made[1]))
    for options in (["--state", state], ["--trust", state / "keys" / "c2pa" / "ca.pem"]):
        said = sentence(capsys, "verify", forged, *options, "--expect", "manifest")
        assert "no trusted manifest, which --expect asks for" in said
        assert "the signer is none that you trust" in lines(capsys, forged, *options)["manifest"]
        lines(capsys, picture(), *options, "--expect", "manifest")
    lines(capsys, forged, "--expect", "manifest")  # nobody is named who would be trusted


def test_a_state_with_a_chain_of_its_own_trusts_its_root_alone(capsys, made, tmp_path):
    """docs/provenance.md, Certificates: an operator's chain.pem and key.pem, and no ca.pem."""
    folder = tmp_path / "own" / "keys" / "c2pa"
    files = {}
    for name, place in (("own", folder), ("forged", tmp_path / "theirs")):
        files[name] = tmp_path / f"{name}.png"
        files[name].write_bytes(Signer.load_or_create(place).sign(as_png(made[0]), made[1]))
    (folder / "ca.pem").unlink()
    where = ("--state", tmp_path / "own")
    assert "trusted, signed by" in lines(capsys, files["own"], *where, "--expect", "manifest")["manifest"]
    said = sentence(capsys, "verify", files["forged"], *where, "--expect", "manifest")
    assert "no trusted manifest, which --expect asks for" in said
    assert "the signer is none that you trust" in lines(capsys, files["forged"], *where)["manifest"]
    chain = (folder / "chain.pem").read_text()
    end = "-----END CERTIFICATE-----\n"
    (folder / "chain.pem").write_text(chain[: chain.index(end) + len(end)])  # the leaf without its root
    for file in files.values():
        said = sentence(capsys, "verify", file, *where)
        assert "chain.pem does not end with a root certificate, and there is no ca.pem: add the root" in said
        lines(capsys, file, *where, "--trust", tmp_path / "theirs" / "ca.pem")  # then it need not say whom to trust
    (folder / "chain.pem").unlink()
    assert "has no ca.pem and no chain.pem, so none of its signers is known" in sentence(
        capsys, "verify", files["forged"], *where
    )


def test_the_text_does_not_replace_what_is_listed(capsys, state, made, picture):
    """A claim that anybody wrote, of a nonce that the list has with its condition and record."""
    options = ("--state", state, "--model", MODEL, "--nonces", state / "nonces.jsonl")
    for change in ({"digest": "another"}, {"condition": 2}, {"condition": None}, {"record": "mine"}):
        found = lines(capsys, picture(texts=replace(made[1], **change), signed=None), *options, "--expect", "watermark")
        assert "fit nonce 0000000000000006, condition 6, record r6" in found["watermark"]
        assert "for each of 3 tried" in found["watermark"]
        assert ("and the file claims another, another" in found["all"]) == ("digest" in change)


def test_a_listed_nonce_without_a_condition_is_tried_with_the_claimed_one_too(capsys, state, made, picture, tmp_path):
    (tmp_path / "bare.jsonl").write_text(json.dumps({"nonce": made[1].nonce, "record": "r"}))
    options = ("--state", state, "--model", MODEL, "--nonces", tmp_path / "bare.jsonl", "--expect", "watermark")
    found = lines(capsys, picture(signed=None), *options)
    assert "condition 6, record r; " in found["watermark"]
    assert "for each of 2 tried" in found["watermark"]


def test_what_was_altered_is_said(capsys, state, made, picture, tmp_path):
    other = picture(texts=replace(made[1], seed=4))
    found = lines(capsys, other, "--state", state)
    assert "altered    text and manifest do not say the same of seed" in found["all"]
    assert "no valid text" in sentence(capsys, "verify", other, "--expect", "text")
    content = bytearray(picture().read_bytes())
    content[content.rindex(b"digits-ctm")] ^= 0x20
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(bytes(content))
    assert "this PNG file cannot be read" in sentence(capsys, "verify", damaged)  # a checksum does not fit
    changed = tmp_path / "changed.png"
    changed.write_bytes(picture().read_bytes() + b"more")
    found = lines(capsys, changed, "--state", state)
    assert "NOT VALID" in found["manifest"]
    assert "altered    manifest: the file was changed after it was signed" in found["all"]
    assert "no valid manifest" in sentence(capsys, "verify", changed, "--expect", "manifest")


def test_a_claim_of_another_s_watermark_is_said(capsys, state, made, picture):
    stolen = replace(made[1], nonce=NONCES[2].hex(), condition=2)
    found = lines(
        capsys,
        picture(texts=stolen, signed=None),
        "--state",
        state,
        "--model",
        MODEL,
        "--nonces",
        state / "nonces.jsonl",
    )
    assert "altered    the watermark found is not the one that the file claims, 0000000000000002" in found["all"]


def test_strangers_claims_are_no_errors(capsys, state, made, picture):
    plain = ["--state", state, "--model", MODEL]
    unknown = lines(capsys, picture(texts=replace(made[1], condition=77), signed=None), *plain)
    assert "is not tried: label 77 is not known to this model" in unknown["all"]
    assert "not looked for: there is no nonce to try" in unknown["watermark"]
    long = lines(capsys, picture(texts=replace(made[1], nonce="00" * 100), signed=None), *plain)
    assert "is not tried: a nonce must be 1 to 64 bytes" in long["all"]
    elsewhere = lines(capsys, picture(texts=replace(made[1], digest="another"), signed=None), *plain)
    assert "left out are 1 nonces of another model" in elsewhere["all"]
    file = picture(texts=None, signed=None)
    file.write_bytes(text.write(as_png(made[0]), {"seed": "\x1b[31mred"}))
    odd = lines(capsys, file)
    assert "no claim of ctm (the claim" in odd["text"]
    assert "\x1b" not in odd["all"]


def test_a_picture_of_another_size_is_resized_and_said(capsys, state, made, picture):
    large = np.asarray(Image.fromarray(made[0]).resize((32, 32), Image.Resampling.BICUBIC))
    found = lines(
        capsys, picture(large, None, None), "--state", state, "--model", MODEL, "--nonces", state / "nonces.jsonl"
    )
    assert "32×32 resized and centre-cropped to the model's 8×8" in found["all"]
    assert "signs fit nonce" in found["watermark"]


def test_without_the_extra_the_rest_is_examined(capsys, made, picture, monkeypatch):
    file = picture()
    monkeypatch.setitem(sys.modules, "c2pa", None)
    found = lines(capsys, file)
    assert (
        'not examined: signed manifests need the package c2pa, which is not installed: pip install "ctm-torch[serve]"'
        in found["manifest"]
    )
    assert "model digits-ctm" in found["text"]


def test_mistakes_are_one_sentence(capsys, state, picture, tmp_path):
    file, key = picture(), state / "keys" / "watermark.key"
    short = tmp_path / "short.key"
    short.write_bytes(b"short")
    for arguments, message in (
        (["missing.png"], "missing.png: No such file or directory: check the name"),
        (
            [file, "--model", MODEL],
            "a watermark is found with the model and the key: give both --model DIR and --key FILE",
        ),
        ([file, "--key", key], "give both --model DIR and --key FILE"),
        ([file, "--nonces", state / "nonces.jsonl"], "give both --model DIR and --key FILE"),
        (
            [file, "--model", MODEL, "--key", short],
            "short.key: the key of the watermark must have at least 16 bytes, got 5",
        ),
        ([file, "--model", MODEL, "--key", key, "--rate", "0"], "rate must be in (0, 1], got 0"),
        ([file, "--expect", "nothing"], "--expect takes manifest, text, watermark, with commas, got 'nothing'"),
        ([file, "--trust", file], "is no text in UTF-8"),
        ([file, "--trust", state / "nonces.jsonl"], "the trust holds no certificates in PEM"),
        ([file, "--state", tmp_path], "has no folder keys: it is no service's directory"),
    ):
        assert message in sentence(capsys, "verify", *arguments)
    assert "is larger than 64 MB" in sentence(capsys, "verify", _large(tmp_path))


def _large(folder: Path) -> Path:
    with (folder / "large.png").open("wb") as file:
        file.truncate((64 << 20) + 1)
    return folder / "large.png"
