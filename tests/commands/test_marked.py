"""The provenance of what ctm sample and ctm edit write under a policy: text, manifest and watermark, found by ctm verify."""

import hashlib
import io
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ctm import TrajectoryModel
from ctm.conditioner import Arrays, Labels
from ctm.networks import MLP
from ctm.provenance import manifest, text
from ctm.safety import State, verify
from ctm.safety.record import entries

from .test_cli import run

MODEL = Path(__file__).parents[2] / "models" / "digits-ctm"
LABELS = (3, 6)
SAMPLE = ("sample", MODEL, "--num", 4, "--steps", 8, "--labels", "3,6", "--seed", 2, "--batch_size", 2)


def pixels_in(path):
    with Image.open(path) as image:
        return np.asarray(image)


def done(capsys, *arguments):
    code, out, err = run(capsys, *arguments)
    assert code == 0, err
    return out


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("marked")
    (folder / "p.yaml").write_text("thresholds: {}\n")
    return folder


@pytest.fixture
def policy(place):
    return ("--policy", place / "p.yaml", "--state", place / "state")


@pytest.fixture
def samples(capsys, place, policy):
    """The directory of four samples, made once."""
    if not (place / "out").exists():
        done(capsys, *SAMPLE, *policy, "--out", place / "out")
    return place / "out"


def said(path, place):
    """(texts, manifest) of a file, the manifest by the state's authority."""
    content = path.read_bytes()
    return text.read(content), manifest.read(content, (place / "state" / "keys" / "c2pa" / "ca.pem").read_text())


def test_all_three_are_found_in_each_sample(capsys, place, samples):
    where = ("--state", place / "state", "--model", MODEL, "--expect", "manifest,text,watermark")
    out = done(capsys, "verify", samples / "000001.png", *where)
    assert "image 1 of seed 2, 8 jumps, γ = 0, condition 6, watermark " in out
    assert "for each of 4 tried" in out  # the nonces of the state
    state = State.open(place / "state")
    (own,) = (one for one in state.store.listed("served") if one.claim["index"] == 1 and one.claim["nonce"])
    assert f"condition 6, record {own.id}" in out
    texts, signed = said(samples / "000001.png", place)
    assert signed.state == "Trusted"
    assert texts == signed.fields
    assert (texts["model"], texts["kind"], texts["record"]) == ("digits-ctm", '"generation"', own.id)
    kept = state.store.nonces(texts["digest"])
    assert {one.nonce.hex() for one in kept} >= {texts["nonce"]}
    state.store.close()


def test_a_false_text_hides_nothing_that_the_database_knows(capsys, place, samples, tmp_path):
    """The picture without its manifest, and with text that claims the same nonce of another model or condition."""
    content = (samples / "000001.png").read_bytes()
    texts = text.read(content)
    for change in ({"digest": "another"}, {"condition": "3"}, {"record": "mine"}):
        file = io.BytesIO()
        Image.fromarray(pixels_in(samples / "000001.png")).save(file, "png")
        (tmp_path / "false.png").write_bytes(text.write(file.getvalue(), {**texts, **change}))
        where = ("--state", place / "state", "--model", MODEL, "--expect", "watermark")
        out = done(capsys, "verify", tmp_path / "false.png", *where)
        (line,) = (line for line in out.splitlines() if line.startswith("watermark"))
        assert f"fit nonce {texts['nonce']}, condition 6, record {texts['record']};" in line


def test_a_directory_is_gone_on_with_to_the_same_pixels(capsys, place, samples, policy):
    before = pixels_in(samples / "000003.png")
    (samples / "000003.png").unlink()
    done(capsys, *SAMPLE, *policy, "--out", samples)
    assert (pixels_in(samples / "000003.png") == before).all()
    more = [{4: 6}.get(each, each) for each in SAMPLE]
    done(capsys, *more, *policy, "--out", samples)
    assert len(list(samples.glob("*.png"))) == 6
    done(capsys, *more, *policy, "--out", place / "at once")
    for path in samples.glob("*.png"):
        assert (pixels_in(path) == pixels_in(place / "at once" / path.name)).all()


def test_samples_of_another_key_are_not_mixed(capsys, place, samples):
    more = [{4: 6}.get(each, each) for each in SAMPLE]
    code, _, err = run(capsys, *more, "--policy", place / "p.yaml", "--state", place / "other", "--out", samples)
    assert code == 2
    assert "holds samples made with another watermark" in err


def test_seeds_have_nonces_of_their_own(capsys, place, samples, policy):
    """Image i of --seeds is number 0 of its seed, also as to its mark."""
    arguments = ("sample", MODEL, "--steps", 8, "--labels", 3, *policy)
    done(capsys, *arguments, "--seeds", "2,9", "--out", place / "seeds")
    assert (pixels_in(place / "seeds" / "000000.png") == pixels_in(samples / "000000.png")).all()
    assert said(place / "seeds" / "000001.png", place)[0]["seed"] == "9"


def test_one_picture_of_many_samples_is_signed_as_a_whole(capsys, place, samples, policy):
    done(capsys, *SAMPLE, *policy, "--out", place / "grid.png")
    texts, signed = said(place / "grid.png", place)
    assert (signed.state, texts) == ("Trusted", signed.fields)
    assert (texts["kind"], texts["images"], texts["nonce"]) == ('"grid"', "4", "null")
    assert "grid, model digits-ctm" in done(capsys, "verify", place / "grid.png", "--state", place / "state")
    state = State.open(place / "state")
    findings = verify(state.store, state.store.record.signer.public)
    assert findings.problems == []
    with state.store.database.reading() as connection:
        told = [json.loads(entry.text) for entry in entries(connection)]
    (composed,) = (entry["body"] for entry in told if entry["kind"] == "composed")
    assert composed["sha256"] == hashlib.sha256((place / "grid.png").read_bytes()).hexdigest()
    assert [state.store.picture(id).claim["index"] for id in composed["shows"]] == [0, 1, 2, 3]
    state.store.close()


def test_a_condition_with_fields_is_in_the_record_and_is_tried(capsys, place, policy):
    """The claim has each row's fields, as a service's has; ctm verify tries them from the state's database."""
    network = MLP((1, 8, 8), 4, width=8, blocks=1, embedding=8, arrays={"place": (2,)})
    both = Labels(4) | Arrays({"place": (2,)})
    TrajectoryModel(network, shape=(1, 8, 8), conditioner=both).save_pretrained(place / "fields")
    np.savez(place / "c.npz", place=np.float32([[0.5, -0.25], [1, 2]]))
    arguments = ("sample", place / "fields", "--labels", "1,2", "--condition", place / "c.npz", "--steps", 8, *policy)
    done(capsys, *arguments, "--out", place / "of fields")
    texts, signed = said(place / "of fields" / "000001.png", place)
    assert signed.fields == texts
    assert json.loads(texts["condition"]) == {"labels": 2, "place": [1.0, 2.0]}
    where = ("--state", place / "state", "--model", place / "fields")
    out = done(capsys, "verify", place / "of fields" / "000001.png", *where)
    assert "for each of 2 tried" in out
    state = State.open(place / "state")
    conditions = [one.condition for one in state.store.nonces(texts["digest"])]
    assert {"labels": 1, "place": [0.5, -0.25]} in conditions
    assert verify(state.store, state.store.record.signer.public).problems == []
    state.store.close()


def test_fresh_noise_is_said_to_hide_the_mark(capsys, place, policy):
    gamma = done(capsys, *SAMPLE, *policy, "--gamma", 1, "--out", place / "gamma.png")
    assert "watermark: γ = 1 with 8 jumps adds fresh noise on the way" in gamma
    assert "watermark:" not in done(capsys, *SAMPLE, *policy, "--out", place / "flow.png")


def test_edits_open_their_picture(capsys, place, samples, policy):
    """Without a watermark: the text and the manifest say what was made from which file."""
    edit = ("edit", "stroke", MODEL, samples / "000000.png", "--sigma", 0.5, "--labels", 3, *policy)
    done(capsys, *edit, "--num", 2, "--out", place / "edited")
    texts, signed = said(place / "edited" / "000001.png", place)
    assert (signed.state, signed.fields, signed.sources) == ("Trusted", texts, ("image",))
    assert (texts["kind"], texts["sampler"], texts["condition"], texts["nonce"]) == ('"stroke"', "gamma", "3", "null")
    assert json.loads(texts["source"]) == [hashlib.sha256((samples / "000000.png").read_bytes()).hexdigest()]
    assert "made from other pictures: image" in done(capsys, "verify", place / "edited" / "000001.png")
    assert b"c2pa" not in (place / "edited" / "input.png").read_bytes()


def test_a_strip_of_edits_names_both_pictures(capsys, place, samples, policy):
    bitmap = place / "second.bmp"  # a form that C2PA does not know
    Image.open(samples / "000001.png").save(bitmap)
    pair = (samples / "000000.png", bitmap, "--labels", "3,6", "--num", 2)
    done(capsys, "edit", "interpolate", MODEL, *pair, *policy, "--out", place / "strip.png")
    texts, signed = said(place / "strip.png", place)
    assert (signed.state, signed.sources) == ("Trusted", ("first", "second"))
    assert (texts["kind"], texts["images"]) == ('"strip"', "2")


@pytest.mark.parametrize(
    ("task", "options", "expected"),
    [
        ("inpaint", ("--mask", "mask.png", "--num", 1), ("restore", "18", "2")),
        ("superresolve", ("--factor", 2, "--num", 1, "--steps", 4), ("restore", "4", "2")),
        ("denoise", ("--sigma", 0.2), ("denoise", "1", None)),
    ],
)
def test_each_kind_of_edit_says_how_it_was_made(capsys, place, samples, policy, task, options, expected):
    Image.fromarray(np.pad(np.full((4, 4), 255, np.uint8), 2)).save(place / "mask.png")
    options = [place / each if each == "mask.png" else each for each in options]
    done(capsys, "edit", task, MODEL, samples / "000000.png", *options, *policy, "--out", place / task)
    texts, signed = said(place / task / "000000.png", place)
    assert signed.state == "Trusted"
    assert (texts["sampler"], texts["steps"], texts.get("rounds")) == expected


def test_a_manifest_that_is_broken_goes_not_along(place, samples):
    """A picture whose own manifest cannot be read is taken for its pixels."""
    signer = manifest.Signer.load_or_create(place / "state" / "keys" / "c2pa")
    plain = io.BytesIO()
    Image.fromarray(pixels_in(samples / "000000.png")).save(plain, "png")
    whole = (samples / "000000.png").read_bytes()
    at = whole.index(b"caBX")  # the chunk of the manifest, whose checksum is made to fit
    end = at + 4 + int.from_bytes(whole[at - 4 : at], "big")
    chunk = whole[at : at + 100] + bytes(64) + whole[at + 164 : end]
    broken = whole[:at] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + whole[end + 4 :]
    assert manifest.read(broken).state == "Invalid"
    for source in (whole, broken, plain.getvalue()):
        signed = signer.sign(plain.getvalue(), {"kind": "edit"}, sources={"image": source})
        read = manifest.read(signed, signer.authority)
        assert (read.state, read.sources) == ("Trusted", ("image",))
    with pytest.raises(ValueError, match="a picture that an edit was made from cannot be read"):
        signer.sign(plain.getvalue(), {"kind": "edit"}, sources={"image": b"no picture"})
